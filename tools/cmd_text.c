/*
 * cmd_text.c - `cosyfarm text`: what the model will see of a text, as segments and token ids.
 *
 * With --json it is a filter: one object {"text": ...} a line in, {"segments": [...], "ids": [[...], ...]} out,
 * flushed line by line, so that another program can hold a conversation with it. Other keys are passed over, so rows
 * of a manifest can be piped in as they are. Text may hold any character JSON can spell, NUL included, because the
 * tokenizer has ids for all of them. A line that cannot be answered gives {"error": {"code", "text"}} in its place, so
 * that line n out always belongs to line n in; lines that are no JSON object with a text make the exit code 65. Where
 * upstream raises an exception (text_norm.h) the answer has no segments, and stderr says why.
 *
 * Owns: the tokenizer and one line at a time.
 */
#define _GNU_SOURCE /* getline */
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/json_scan.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "common/base/utf8.h"
#include "common/text/bpe.h"
#include "common/text/text_buf.h"
#include "common/text/text_norm.h"
#include "tools/cmd.h"
#include "tools/options.h"

#define LINE_BYTES_MAX ((size_t)1 << 20) /* ten thousand characters, each as \uXXXX\uXXXX, and as much again */
#define DEPTH_MAX      16

typedef struct text_options {
    const char *model; /* borrowed from argv or the environment */
    bool raw;
    bool json;
    char *text; /* owned; the words of the command line, joined; NULL: read stdin */
} text_options;

static const char HELP[] =
    "usage: cosyfarm text -m MODEL [--raw] [--json] [TEXT...]\n"
    "\n"
    "Shows what the model will see: the normalised segments of TEXT and their token ids.\n"
    "\n"
    "  -m, --model MODEL  a model directory, or one that holds only CosyVoice-BlankEN/ (default: $COSYFARM_MODEL)\n"
    "      --raw          no normalisation: the text is one segment, verbatim\n"
    "      --json         without TEXT: JSON lines {\"text\": ...} from stdin; {\"segments\", \"ids\"} per line to "
    "stdout\n"
    "\n"
    "Without TEXT and --json, or with TEXT \"-\", the text is read from stdin. A line that cannot be answered\n"
    "gives {\"error\": {\"code\", \"text\"}} and the exit code 65.\n";

static cf_err join_words(int argc, char **argv, char **ret_text)
{
    cf_err err;
    text_buf buf = {0};
    TRY(text_buf_put_str(&buf, ""));
    for (int i = 0; i < argc; i++) {
        TRY(text_buf_put_str(&buf, i ? " " : ""));
        TRY(text_buf_put_str(&buf, argv[i]));
    }
    *ret_text = buf.text;
    buf = (text_buf){0};
out:
    text_buf_done(&buf);
    return err;
}

static int usage(const char *what)
{
    fprintf(stderr, "cosyfarm text: %s\n", what);
    return EXIT_USAGE;
}

/* Returns -1 to go on, else the exit code. */
static int parse_options(int argc, char **argv, text_options *opt)
{
    enum { OPT_RAW = 256, OPT_JSON };
    static const struct option options[] = {
        {"model", required_argument, NULL, 'm'},
        {"raw", no_argument, NULL, OPT_RAW},
        {"json", no_argument, NULL, OPT_JSON},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    opt->model = getenv("COSYFARM_MODEL");
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "m:h", options, NULL)) != -1;) {
        switch (c) {
        case 'm':
            opt->model = optarg;
            break;
        case OPT_RAW:
            opt->raw = true;
            break;
        case OPT_JSON:
            opt->json = true;
            break;
        case 'h':
            fputs(HELP, stdout);
            return EXIT_DONE;
        default:
            options_refused(argv, "text");
            return usage(err_text());
        }
    }
    if (!opt->model || !opt->model[0])
        return options_no_model("text");
    const bool from_stdin = optind == argc || (optind + 1 == argc && strcmp(argv[optind], "-") == 0);
    if (!from_stdin && join_words(argc - optind, argv + optind, &opt->text) != CF_OK) {
        fprintf(stderr, "cosyfarm text: %s\n", err_text());
        return EXIT_AGAIN;
    }
    return -1;
}

/* U+0085, U+2028 and U+2029 end a line to many a reader (Python's splitlines, JavaScript): such a reader must still
 * find one object a line. Returns the escape and its source's length, or NULL. */
static const char *line_end_escape(const char *text, size_t text_bytes, size_t *ret_bytes)
{
    static const struct {
        const char *text, *escape;
    } ends[] = {{"\xc2\x85", "\\u0085"}, {"\xe2\x80\xa8", "\\u2028"}, {"\xe2\x80\xa9", "\\u2029"}};
    for (size_t i = 0; i < CF_COUNT(ends); i++) {
        const size_t bytes = strlen(ends[i].text);
        if (text_bytes >= bytes && memcmp(text, ends[i].text, bytes) == 0) {
            *ret_bytes = bytes;
            return ends[i].escape;
        }
    }
    return NULL;
}

static void print_json_string(const char *text, size_t text_bytes)
{
    putchar('"');
    for (size_t i = 0, step; i < text_bytes; i += step) {
        const unsigned char c = (unsigned char)text[i];
        const char *escape = c < 0x80 ? NULL : line_end_escape(text + i, text_bytes - i, &step);
        if (escape) {
            fputs(escape, stdout);
            continue;
        }
        step = 1;
        if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c < 0x20 || c == 0x7F)
            printf("\\u%04x", c);
        else
            putchar(c);
    }
    putchar('"');
}

/* ids: the ids of all segments, one behind another; ends: where each segment's end. */
static void print_json(const text_norm *norm, const id_list *ids, const size_t *ends)
{
    printf("{\"segments\": [");
    for (size_t i = 0; i < norm->segment_count; i++) {
        fputs(i ? ", " : "", stdout);
        print_json_string(norm->segments[i].text, norm->segments[i].text_bytes);
    }
    printf("], \"ids\": [");
    for (size_t i = 0, k = 0; i < norm->segment_count; i++) {
        printf("%s[", i ? ", " : "");
        for (const size_t first = k; k < ends[i]; k++)
            printf("%s%d", k > first ? ", " : "", ids->ids[k]);
        putchar(']');
    }
    printf("]}\n");
}

static void print_table(const text_norm *norm, const id_list *ids, const size_t *ends)
{
    for (size_t i = 0, k = 0; i < norm->segment_count; i++) {
        printf("segment %zu: %zu characters, %zu tokens\n  ", i + 1,
               utf8_count(norm->segments[i].text, norm->segments[i].text_bytes), ends[i] - k);
        fwrite(norm->segments[i].text, 1, norm->segments[i].text_bytes, stdout);
        printf("\n ");
        for (; k < ends[i]; k++)
            printf(" %d", ids->ids[k]);
        putchar('\n');
    }
}

static cf_err answer(const tokenizer *tok, const text_options *opt, const char *text, size_t text_bytes)
{
    cf_err err;
    text_norm norm = {0};
    id_list ids = {0};
    size_t *ends = NULL;
    TRY(opt->raw ? text_verbatim(text, text_bytes, &norm) : text_normalize(tok, text, text_bytes, &norm));
    TRY(mem_alloc(norm.segment_count, sizeof *ends, &ends));
    for (size_t i = 0; i < norm.segment_count; i++) {
        TRY(tokenizer_encode(tok, norm.segments[i].text, norm.segments[i].text_bytes, &ids));
        ends[i] = ids.id_count;
    }
    if (opt->json)
        print_json(&norm, &ids, ends);
    else
        print_table(&norm, &ids, ends);
    if (norm.empty_reason)
        fprintf(stderr, "cosyfarm text: nothing to say: %s\n", norm.empty_reason);
out:
    text_norm_done(&norm);
    id_list_done(&ids);
    mem_free(ends);
    return err;
}

/* The value of "text" in one line; buf holds line_bytes, which a resolved string never exceeds. */
static cf_err text_of_line(const char *line, size_t line_bytes, char *buf, size_t *ret_bytes)
{
    cf_err err;
    json_scan s = {.text = line, .text_bytes = line_bytes};
    char key[8];
    size_t key_bytes, bad_off;
    bool found = false;
    if (line_bytes > LINE_BYTES_MAX)
        FAIL(CF_ERR_LIMIT, "expected at most %zu bytes in a line, found %zu", LINE_BYTES_MAX, line_bytes);
    if (!utf8_valid(line, line_bytes, &bad_off))
        FAIL(CF_ERR_INVALID, "invalid UTF-8 at byte %zu", bad_off);
    if (!json_scan_take(&s, '{'))
        FAIL(CF_ERR_INVALID, "expected an object {\"text\": ...}");
    do {
        const size_t key_off = s.off;
        err = json_scan_string(&s, key, sizeof key, &key_bytes);
        if (err == CF_ERR_LIMIT) { /* longer than any key we know */
            s.off = key_off;
            key_bytes = 0;
            err = json_scan_skip(&s, 1);
        }
        if (err != CF_OK)
            goto out;
        if (!json_scan_take(&s, ':'))
            FAIL(CF_ERR_INVALID, "expected ':' at byte %zu", s.off);
        const bool is_text = key_bytes == 4 && memcmp(key, "text", 4) == 0;
        if (is_text && found)
            FAIL(CF_ERR_INVALID, "key \"text\" appears twice");
        TRY(is_text ? json_scan_string(&s, buf, line_bytes, ret_bytes) : json_scan_skip(&s, DEPTH_MAX));
        found = found || is_text;
    } while (json_scan_take(&s, ','));
    if (!json_scan_take(&s, '}') || !json_scan_end(&s))
        FAIL(CF_ERR_INVALID, "expected ',' or the end of the object at byte %zu", s.off);
    if (!found)
        FAIL(CF_ERR_INVALID, "key \"text\" is missing");
out:
    return err;
}

static void print_error(cf_err err)
{
    printf("{\"error\": {\"code\": \"%s\", \"text\": ", err_name(err));
    print_json_string(err_text(), strlen(err_text()));
    printf("}}\n");
}

static bool is_blank(const char *line, size_t line_bytes)
{
    return strspn(line, " \t\r\n") == line_bytes;
}

static int answer_lines(const tokenizer *tok, const text_options *opt)
{
    char *line = NULL, *buf = NULL;
    size_t capacity = 0, line_no = 0, bytes;
    int code = EXIT_DONE;
    ssize_t got;
    while ((got = getline(&line, &capacity, stdin)) >= 0) {
        line_no++;
        if (is_blank(line, (size_t)got))
            continue;
        cf_err err = mem_resize(&buf, (size_t)got, 1);
        if (err == CF_OK)
            err = text_of_line(line, (size_t)got, buf, &bytes);
        if (err == CF_OK)
            err = answer(tok, opt, buf, bytes);
        if (err != CF_OK) {
            fprintf(stderr, "cosyfarm text: line %zu: %s\n", line_no, err_text());
            print_error(err);
            code = EXIT_ROWS_FAILED;
        }
        const int lost = process_flush_output("cosyfarm text", EXIT_DONE);
        if (lost != EXIT_DONE) {
            code = lost;
            break;
        }
    }
    mem_free(line);
    mem_free(buf);
    return code;
}

/* All of stdin, or the words of the command line; one line end at the end of stdin is the terminal's, not the
 * text's. */
static int answer_one(const tokenizer *tok, text_options *opt)
{
    cf_err err = CF_OK;
    text_buf input = {0};
    char chunk[4096];
    size_t got;
    if (opt->text) {
        TRY(text_buf_put_str(&input, opt->text));
    } else {
        TRY(text_buf_put_str(&input, ""));
        while ((got = fread(chunk, 1, sizeof chunk, stdin)) > 0) {
            if (input.text_bytes + got > TEXT_BYTES_MAX + 1)
                FAIL(CF_ERR_LIMIT, "text: expected at most %d characters, found more", TEXT_CHARS_MAX);
            TRY(text_buf_put(&input, chunk, got));
        }
        if (ferror(stdin)) {
            err = err_sys("standard input");
            goto out;
        }
        if (input.text_bytes > 0 && input.text[input.text_bytes - 1] == '\n')
            input.text_bytes--;
    }
    TRY(answer(tok, opt, input.text, input.text_bytes));
out:
    text_buf_done(&input);
    if (err == CF_OK)
        return EXIT_DONE;
    fprintf(stderr, "cosyfarm text: %s\n", err_text());
    return err == CF_ERR_NOMEM ? EXIT_AGAIN : EXIT_CONFIG;
}

int cmd_text(int argc, char **argv)
{
    text_options opt = {0};
    tokenizer *tok = NULL;
    int code = parse_options(argc, argv, &opt);
    if (code >= 0)
        return code;
    const cf_err err = tokenizer_open(opt.model, &tok);
    if (err != CF_OK) {
        fprintf(stderr, "cosyfarm text: %s\n", err_text());
        code = err == CF_ERR_NOMEM ? EXIT_AGAIN : EXIT_CONFIG;
    } else {
        code = opt.json && !opt.text ? answer_lines(tok, &opt) : answer_one(tok, &opt);
    }
    tokenizer_close(tok);
    mem_free(opt.text);
    return code;
}
