/*
 * replay.c - main() of a fuzz target without libFuzzer: replays tests/fuzz/corpus/<name>/ and mutations of it, in TAP.
 *
 *   fuzz_<name> [MUTATIONS_PER_TARGET]
 *
 * The inputs run in a child process. The input at hand lies in a page shared with the parent, so whatever way the child
 * dies the parent can say which input did it and keep a copy in build/ for `fuzz_<name>` to be run on.
 * Mutations are drawn from Philox with a fixed key: the same inputs on every machine.
 * Fails: one case for the corpus, one for the mutations; a target without a corpus folder fails.
 */
#define _GNU_SOURCE
#include "tests/fuzz/fuzz.h"

#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/rng.h"

#define INPUT_BYTES_MAX   (1u << 20)
#define FILES_MAX         512
#define MUTATIONS_DEFAULT 400
#define MUTATION_KEY      0x666172u

/* What the child is doing, shared with the parent. */
typedef struct shared_input {
    char label[512];
    size_t data_bytes;
    uint8_t data[INPUT_BYTES_MAX];
} shared_input;

typedef struct corpus {
    size_t file_count;
    struct {
        char path[IO_PATH_BYTES];
        io_map map;
    } files[FILES_MAX];
} corpus;

static void die(const char *what)
{
    printf("1..1\nnot ok 1 - %s\n", what);
    exit(1);
}

static corpus *corpus_open(const char *folder)
{
    struct dirent **names = NULL;
    corpus *c = NULL;
    const int count = scandir(folder, &names, NULL, alphasort);
    if (count < 0 || mem_alloc(1, sizeof *c, &c) != CF_OK)
        die(folder);
    for (int i = 0; i < count; i++) {
        if (names[i]->d_name[0] != '.' && c->file_count < FILES_MAX) {
            char *path = c->files[c->file_count].path;
            if (io_join(path, IO_PATH_BYTES, folder, names[i]->d_name) != CF_OK ||
                io_map_file(path, &c->files[c->file_count].map) != CF_OK)
                die(names[i]->d_name);
            c->file_count++;
        }
        free(names[i]);
    }
    free(names);
    if (c->file_count == 0)
        die("the corpus folder is empty");
    return c;
}

static void corpus_close(corpus *c)
{
    for (size_t i = 0; i < c->file_count; i++)
        io_unmap(&c->files[i].map);
    mem_free(c);
}

/* The next four random words of mutation `number`. */
typedef struct dice {
    uint32_t number, draw;
} dice;

static uint32_t dice_below(dice *d, uint32_t bound)
{
    const uint32_t counter[4] = {d->number, d->draw++, 0, 0};
    uint32_t words[4];
    rng_philox(MUTATION_KEY, counter, words);
    return bound ? words[0] % bound : 0;
}

/* Removes, repeats or overwrites a range, or flips, replaces or cuts. in: at most INPUT_BYTES_MAX bytes. */
static void mutate_once(dice *d, const corpus *c, shared_input *in)
{
    static const uint8_t special[] = {0, 1, 0x7f, 0x80, 0xff, '"', '{', '[', '\\', '-', '9', 0xc3, 0xed, '\n', ','};
    const uint32_t bytes = (uint32_t)in->data_bytes;
    const uint32_t at = dice_below(d, bytes), span = dice_below(d, (bytes - at < 64 ? bytes - at : 64) + 1);
    const io_map *other = &c->files[dice_below(d, (uint32_t)c->file_count)].map;
    switch (dice_below(d, 7)) {
    case 0:
        in->data_bytes = at;
        break;
    case 1:
        memmove(in->data + at, in->data + at + span, bytes - at - span);
        in->data_bytes -= span;
        break;
    case 2:
        if (bytes + span <= INPUT_BYTES_MAX) {
            memmove(in->data + at + span, in->data + at, bytes - at);
            in->data_bytes += span;
        }
        break;
    case 3:
        if (bytes > 0)
            in->data[at] = (uint8_t)(in->data[at] ^ (1u << dice_below(d, 8)));
        break;
    case 4:
        for (uint32_t i = 0; i < 8 && at + i < bytes; i++)
            in->data[at + i] = (uint8_t)dice_below(d, 256);
        break;
    case 5:
        if (other->data_bytes > 0) {
            const uint32_t from = dice_below(d, (uint32_t)other->data_bytes);
            for (uint32_t i = 0; i < span && from + i < other->data_bytes; i++)
                in->data[at + i] = other->data[from + i];
        }
        break;
    default:
        if (bytes > 0)
            in->data[at] = special[dice_below(d, (uint32_t)sizeof special)];
    }
}

/* Runs the target on a heap copy of exactly the right size, so that a sanitizer sees a read past its end. */
static void run_input(const shared_input *in)
{
    uint8_t *copy = NULL;
    if (mem_alloc(in->data_bytes, 1, &copy) != CF_OK)
        exit(3);
    memcpy(copy, in->data, in->data_bytes);
    if (LLVMFuzzerTestOneInput(copy, in->data_bytes) != 0)
        exit(4);
    mem_free(copy);
}

static void load_input(shared_input *in, const corpus *c, size_t file_idx)
{
    const io_map *map = &c->files[file_idx].map;
    if (map->data_bytes > INPUT_BYTES_MAX)
        exit(5);
    in->data_bytes = map->data_bytes;
    if (map->data_bytes > 0)
        memcpy(in->data, map->data, map->data_bytes);
}

static void replay_corpus(const corpus *c, shared_input *in)
{
    for (size_t i = 0; i < c->file_count; i++) {
        load_input(in, c, i);
        snprintf(in->label, sizeof in->label, "%.500s", c->files[i].path);
        run_input(in);
    }
}

static void replay_mutations(const corpus *c, shared_input *in, uint32_t mutation_count)
{
    for (uint32_t number = 0; number < mutation_count; number++) {
        dice d = {.number = number};
        const size_t file_idx = number % c->file_count;
        load_input(in, c, file_idx);
        snprintf(in->label, sizeof in->label, "mutation %u of %.450s", number, c->files[file_idx].path);
        for (uint32_t left = 1 + dice_below(&d, 4); left > 0; left--)
            mutate_once(&d, c, in);
        run_input(in);
    }
}

/* Reports case `number`; true when the child came to its end. */
static bool report(int number, const char *what, pid_t child, const shared_input *in, const char *program)
{
    int status = 0;
    if (waitpid(child, &status, 0) != child)
        die("waitpid");
    if (status == 0) {
        printf("ok %d - %s\n", number, what);
        return true;
    }
    char path[IO_PATH_BYTES];
    snprintf(path, sizeof path, "%s.found", program);
    printf("not ok %d - %s\n# %s (%zu bytes): %s %d\n", number, what, in->label, in->data_bytes,
           WIFSIGNALED(status) ? "killed by signal" : "exit status",
           WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    if (io_write_file(path, in->data, in->data_bytes) == CF_OK)
        printf("# the input is kept in %s\n", path);
    return false;
}

int main(int argc, char **argv)
{
    const char *name = strstr(argv[0], "fuzz_") ? strrchr(argv[0], '/') + strlen("/fuzz_") : NULL;
    const char *root = getenv("COSYFARM_ROOT");
    if (!name)
        die("the program's name has to be fuzz_<name>");
    const unsigned long mutation_count = argc > 1 ? strtoul(argv[1], NULL, 10) : MUTATIONS_DEFAULT;
    char folder[IO_PATH_BYTES];
    snprintf(folder, sizeof folder, "%s/tests/fuzz/corpus/%s", root ? root : ".", name);
    corpus *c = corpus_open(folder);
    shared_input *in = mmap(NULL, sizeof *in, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (in == MAP_FAILED)
        die("mmap");
    printf("1..2\n");
    bool good = true;
    for (int number = 1; number <= 2; number++) {
        char what[128];
        if (number == 1)
            snprintf(what, sizeof what, "corpus of %zu files", c->file_count);
        else
            snprintf(what, sizeof what, "%lu mutations", mutation_count);
        fflush(stdout);
        const pid_t child = fork();
        if (child < 0)
            die("fork");
        if (child == 0) {
            if (number == 1)
                replay_corpus(c, in);
            else
                replay_mutations(c, in, (uint32_t)mutation_count);
            corpus_close(c);
            exit(0);
        }
        good = report(number, what, child, in, argv[0]) && good;
    }
    corpus_close(c);
    return good ? 0 : 1;
}
