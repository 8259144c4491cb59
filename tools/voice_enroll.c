/*
 * voice_enroll.c - `cosyfarm voice enroll`: starts the program `enroll` beside this one and tells what came of it. The
 * decoder and the networks run there, so a file that breaks them breaks nothing here.
 *
 * One process, one thread; owns the pipe and what came through it.
 * Fails: exit 64 usage, 65 recording or transcript refused, 75 out of resources, 78 model unusable, 1 when the program
 * died.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "tools/cmd.h"
#include "tools/options.h"
#include "tools/voice_verbs.h"

#define RESULT_BYTES_MAX ((size_t)1 << 20)

static const char HELP[] = "usage: cosyfarm voice enroll -m MODEL FILE --text TEXT -n NAME [--force] [--json]\n"
                           "\n"
                           "Makes a voice from a recording of 0.5 to 30 s, best 5 to 15 s of one person speaking. FILE "
                           "is anything libsndfile\n"
                           "reads (wav, flac, ogg, mp3), at least 16 kHz.\n"
                           "\n"
                           "  -m, --model DIR       model directory (or COSYFARM_MODEL)\n"
                           "  -t, --text TEXT       what is spoken in FILE, word for word\n"
                           "  -n, --name NAME       name of the voice\n"
                           "      --threads N       compute threads (default: all)\n"
                           "      --force           replace a voice of that name\n"
                           "      --json            the result as one JSON object\n"
                           "  -h, --help            this text\n";

typedef struct arguments {
    const char *model_path, *text, *name, *threads, *recording;
    bool force, json, help;
} arguments;

static int usage(const char *what)
{
    fprintf(stderr, "cosyfarm voice enroll: %s\n", what);
    return EXIT_USAGE;
}

static int parse_arguments(int argc, char **argv, arguments *ret_args)
{
    enum { OPT_FORCE = 256, OPT_JSON, OPT_THREADS };
    static const struct option options[] = {
        {"model", required_argument, NULL, 'm'},
        {"text", required_argument, NULL, 't'},
        {"name", required_argument, NULL, 'n'},
        {"force", no_argument, NULL, OPT_FORCE},
        {"threads", required_argument, NULL, OPT_THREADS},
        {"json", no_argument, NULL, OPT_JSON},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    arguments a = {.model_path = getenv("COSYFARM_MODEL")};
    optind = 0; /* a fresh scan: tests call this more than once */
    opterr = 0;
    for (int opt; (opt = getopt_long(argc, argv, "m:t:n:h", options, NULL)) != -1;) {
        if (opt == 'm')
            a.model_path = optarg;
        else if (opt == 't')
            a.text = optarg;
        else if (opt == 'n')
            a.name = optarg;
        else if (opt == OPT_THREADS)
            a.threads = optarg;
        else if (opt == OPT_FORCE)
            a.force = true;
        else if (opt == OPT_JSON)
            a.json = true;
        else if (opt == 'h')
            a.help = true;
        else {
            options_refused(argv, "voice enroll");
            return usage(err_text());
        }
    }
    *ret_args = a;
    if (a.help)
        return EXIT_DONE;
    if (!a.model_path || !a.model_path[0])
        return options_no_model("voice enroll");
    if (optind + 1 != argc)
        return usage("expected one recording");
    if (!a.text || !a.name)
        return usage(a.text ? "no name: -n NAME" : "no transcript: --text TEXT");
    ret_args->recording = argv[optind];
    return EXIT_DONE;
}

static cf_err start(const arguments *a, int pipe_in, pid_t *ret_pid)
{
    cf_err err;
    char program[IO_PATH_BYTES];
    char wav[] = "--wav", text[] = "--text", name[] = "--name", model[] = "--model", threads[] = "--threads";
    char force[] = "--force", self[] = "enroll";
    const char *values[] = {self, model, a->model_path, wav, a->recording, text, a->text, name, a->name};
    char *argv[16];
    int n = 0;
    posix_spawn_file_actions_t files;
    TRY(process_sibling("enroll", program, sizeof program));
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        memcpy(&argv[n++], &values[i], sizeof *values); /* posix_spawn's argv is not const */
    if (a->threads) {
        argv[n++] = threads;
        memcpy(&argv[n++], &a->threads, sizeof a->threads);
    }
    if (a->force)
        argv[n++] = force;
    argv[n] = NULL;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, pipe_in, STDOUT_FILENO);
    const int rc = posix_spawn(ret_pid, program, &files, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&files);
    if (rc != 0)
        FAIL(CF_ERR_SYS, "%s: %s", program, strerror(rc));
out:
    return err;
}

/* All that the program prints, then its status. */
static cf_err read_result(int fd, pid_t pid, char **ret_text, size_t *ret_bytes, int *ret_status)
{
    cf_err err;
    char *text = NULL;
    size_t bytes = 0;
    TRY(mem_alloc(RESULT_BYTES_MAX, 1, &text));
    for (ssize_t got = 1; got != 0 && bytes < RESULT_BYTES_MAX; bytes += (size_t)got) {
        got = read(fd, text + bytes, RESULT_BYTES_MAX - bytes);
        if (got < 0) {
            err = errno == EINTR ? CF_OK : err_sys("pipe from enroll");
            got = 0;
            if (err != CF_OK)
                goto out;
        }
    }
    *ret_text = text;
    *ret_bytes = bytes;
    text = NULL;
    err = CF_OK;
out:
    while (waitpid(pid, ret_status, 0) < 0 && errno == EINTR)
        ;
    mem_free(text);
    return err;
}

static cf_err print_result(const arguments *a, const char *text, size_t bytes)
{
    cf_err err;
    json *root = NULL;
    const char *name, *sha;
    uint64_t tokens;
    TRY(json_parse(text, bytes, 4, &root));
    TRY(json_get_str(root, "name", NAME_BYTES_MAX, &name));
    TRY(json_get_str(root, "sha256", 64, &sha));
    TRY(json_get_u64(root, "prompt_tokens", 1, PROMPT_TOKENS_MAX, &tokens));
    if (a->json)
        fwrite(text, 1, bytes, stdout);
    else
        printf("%-20s %6.2f s  %.16s  %s\n", name, (double)tokens / TOKENS_PER_SECOND, sha, a->text);
out:
    json_close(root);
    return err;
}

static int enroll(const arguments *a)
{
    int fds[2] = {-1, -1}, status = 0;
    pid_t pid = 0;
    char *text = NULL;
    size_t bytes = 0;
    cf_err err = pipe2(fds, O_CLOEXEC) == 0 ? CF_OK : err_sys("pipe");
    if (err == CF_OK)
        err = start(a, fds[1], &pid);
    io_close(&fds[1]);
    if (err == CF_OK)
        err = read_result(fds[0], pid, &text, &bytes, &status);
    io_close(&fds[0]);
    if (err == CF_OK && WIFSIGNALED(status))
        err = err_set(CF_ERR_GONE, "the program enroll died of signal %d (%s)", WTERMSIG(status),
                      strsignal(WTERMSIG(status)));
    else if (err == CF_OK && WEXITSTATUS(status) == 0)
        err = print_result(a, text, bytes);
    mem_free(text);
    if (err != CF_OK) {
        fprintf(stderr, "cosyfarm voice enroll: %s\n", err_text());
        return err == CF_ERR_NOMEM ? EXIT_AGAIN : EXIT_OURS;
    }
    return WEXITSTATUS(status); /* what went wrong there has been said there */
}

int voice_enroll(int argc, char **argv)
{
    arguments a;
    const int code = parse_arguments(argc, argv, &a);
    if (code != EXIT_DONE)
        return code;
    if (a.help) {
        fputs(HELP, stdout);
        return EXIT_DONE;
    }
    return enroll(&a);
}
