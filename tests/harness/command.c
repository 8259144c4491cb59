/* command.c - see command.h. Fails: the running test, when what was printed does not fit. */
#define _GNU_SOURCE
#include "tests/harness/command.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "tests/harness/test.h"

char command_out[1 << 18], command_errors[1 << 16];

static void keep_text(const char *path, char *ret_text, size_t text_bytes)
{
    char *text = NULL;
    size_t length;
    assert_ok(io_read_file(path, text_bytes - 1, &text, &length));
    memcpy(ret_text, text, length + 1);
    mem_free(text);
}

int command_run(int (*verb)(int, char **), char *const *argv)
{
    FILE *const streams[2] = {stdout, stderr};
    static char dir[256]; /* one for all calls of a program */
    char paths[2][512], *args[64];
    int saved[2], argc = 0;
    if (!dir[0])
        snprintf(dir, sizeof dir, "%s", test_temp_dir());
    for (; argv[argc]; argc++) {
        assert_true(argc < 63);
        args[argc] = argv[argc];
    }
    args[argc] = NULL;
    for (int i = 0; i < 2; i++) {
        snprintf(paths[i], sizeof paths[i], "%s/stream-%d", dir, i);
        fflush(streams[i]);
        saved[i] = dup(i + 1);
        const int fd = open(paths[i], O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
        assert_true(saved[i] >= 0 && fd >= 0);
        dup2(fd, i + 1);
        close(fd);
    }
    const int code = verb(argc, args);
    for (int i = 0; i < 2; i++) {
        fflush(streams[i]);
        dup2(saved[i], i + 1);
        close(saved[i]);
    }
    keep_text(paths[0], command_out, sizeof command_out);
    keep_text(paths[1], command_errors, sizeof command_errors);
    return code;
}
