/*
 * io.c - files and descriptors. Any process, any thread; owns nothing between calls.
 * Fails: CF_ERR_SYS with path and errno's words, CF_ERR_STORAGE where files cannot be put, CF_ERR_NOTFOUND for a
 * missing file, CF_ERR_LIMIT, CF_ERR_NOMEM.
 */
#define _GNU_SOURCE
#include "common/base/io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/base/fault.h"
#include "common/base/mem.h"

/* What a path names is often a stranger's choice: opening a FIFO or a device must not wait for its other end. */
static cf_err open_regular(const char *path, int *ret_fd, size_t *ret_bytes)
{
    struct stat st;
    const int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY; /* means nothing to a regular file */
    const int fd = fault_hit("io.open") ? (errno = EMFILE, -1) : open(path, flags);
    if (fd < 0)
        return errno == ENOENT ? err_set(CF_ERR_NOTFOUND, "%s: no such file", path) : err_sys("%s: open", path);
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return err_set(CF_ERR_INVALID, "%s: not a regular file", path);
    }
    *ret_fd = fd;
    *ret_bytes = (size_t)st.st_size;
    return CF_OK;
}

cf_err io_map_file(const char *path, io_map *ret_map)
{
    cf_err err;
    int fd = -1;
    size_t bytes = 0;
    TRY(open_regular(path, &fd, &bytes));
    const unsigned char *data = NULL;
    if (bytes > 0) {
        void *p = fault_hit("io.map") ? (errno = ENOMEM, MAP_FAILED) : mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            err = err_sys("%s: mmap of %zu bytes", path, bytes);
            goto out;
        }
        data = p;
    }
    *ret_map = (io_map){.data = data, .data_bytes = bytes};
out:
    io_close(&fd);
    return err;
}

void io_unmap(io_map *m)
{
    if (m->data)
        munmap((void *)(uintptr_t)m->data, m->data_bytes);
    *m = (io_map){0};
}

cf_err io_read_file(const char *path, size_t bytes_max, char **ret_text, size_t *ret_bytes)
{
    cf_err err;
    int fd = -1;
    char *text = NULL;
    size_t bytes = 0;
    TRY(open_regular(path, &fd, &bytes));
    if (bytes > bytes_max)
        FAIL(CF_ERR_LIMIT, "%s: %zu bytes, at most %zu are read", path, bytes, bytes_max);
    TRY(mem_alloc(bytes + 1, 1, &text));
    size_t done = 0;
    while (done < bytes) {
        const ssize_t n = fault_hit("io.read") ? (errno = EIO, -1) : read(fd, text + done, bytes - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            err = n < 0 ? err_sys("%s: read", path) : err_set(CF_ERR_CORRUPT, "%s: shrank while being read", path);
            goto out;
        }
        done += (size_t)n;
    }
    *ret_text = text;
    *ret_bytes = bytes;
    text = NULL;
out:
    mem_free(text);
    io_close(&fd);
    return err;
}

cf_err io_write_all(int fd, const void *data, size_t bytes)
{
    const char *p = data;
    while (bytes > 0) {
        const ssize_t n = fault_hit("io.write") ? (errno = ENOSPC, -1) : write(fd, p, bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_sys("write");
        p += n;
        bytes -= (size_t)n;
    }
    return CF_OK;
}

/* A folder that lets nobody, or not us, put files in is storage that refuses, as a read-only one is: somebody may open
 * it while rows wait. */
static cf_err err_put(const char *what, const char *path)
{
    const bool is_closed = errno == EACCES || errno == EPERM;
    const cf_err err = err_sys("%s: %s", path, what);
    return is_closed ? CF_ERR_STORAGE : err;
}

static int sync_fd(int fd)
{
    return fault_hit("io.fsync") ? (errno = EIO, -1) : fsync(fd);
}

cf_err io_sync_folder_of(const char *path)
{
    char folder[IO_PATH_BYTES];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (!slash)
        memcpy(folder, ".", 2);
    else if (slash == folder)
        slash[1] = '\0';
    else
        *slash = '\0';
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_sys("%s: open", folder);
    const int failed = sync_fd(fd);
    io_close(&fd);
    return failed ? err_sys("%s: fsync", folder) : CF_OK;
}

#define TEMP_MARK ".tmp."

static cf_err temp_path(const char *path, char ret_temp[IO_PATH_BYTES])
{
    if (snprintf(ret_temp, IO_PATH_BYTES, "%s" TEMP_MARK "%ld", path, (long)getpid()) >= IO_PATH_BYTES)
        return err_set(CF_ERR_LIMIT, "%.80s...: path longer than %d bytes", path, IO_PATH_BYTES);
    return CF_OK;
}

cf_err io_create_beside(const char *path, char ret_temp[IO_PATH_BYTES], int *ret_fd)
{
    cf_err err;
    TRY(temp_path(path, ret_temp));
    const int fd =
        fault_hit("io.create") ? (errno = EDQUOT, -1) : open(ret_temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) {
        err = err_put("create", ret_temp);
        goto out;
    }
    *ret_fd = fd;
out:
    return err;
}

/* Bytes of the path that a temporary file was to become; 0: the name is none of ours. */
static size_t final_bytes(const char *name)
{
    const size_t mark_bytes = sizeof TEMP_MARK - 1;
    size_t digits_at = strlen(name);
    while (digits_at > 0 && name[digits_at - 1] >= '0' && name[digits_at - 1] <= '9')
        digits_at--;
    const bool marked =
        name[digits_at] && digits_at > mark_bytes && memcmp(name + digits_at - mark_bytes, TEMP_MARK, mark_bytes) == 0;
    return marked ? digits_at - mark_bytes : 0;
}

void io_remove_leftovers(const char *folder, bool (*is_ours)(void *ctx, const char *path), void *ctx)
{
    char path[IO_PATH_BYTES], final[IO_PATH_BYTES];
    DIR *d = opendir(folder);
    for (const struct dirent *e = d ? readdir(d) : NULL; e; e = readdir(d)) {
        const size_t bytes = final_bytes(e->d_name);
        if (bytes == 0 || io_join(path, sizeof path, folder, e->d_name) != CF_OK)
            continue;
        snprintf(final, sizeof final, "%.*s", (int)(strlen(folder) + 1 + bytes), path);
        if (is_ours(ctx, final))
            unlink(path);
    }
    if (d)
        closedir(d);
}

cf_err io_put_in_place(int fd, const char *temp, const char *path)
{
    if (sync_fd(fd) != 0)
        return err_sys("%s: fsync", temp);
    if ((fault_hit("io.rename") ? (errno = EIO, -1) : rename(temp, path)) != 0)
        return err_put("rename", path);
    return CF_OK;
}

cf_err io_commit(int fd, const char *temp, const char *path)
{
    const cf_err err = io_put_in_place(fd, temp, path);
    return err == CF_OK ? io_sync_folder_of(path) : err;
}

cf_err io_file_begin(const char *path, const void *data, size_t bytes, int *ret_fd)
{
    cf_err err;
    int fd = -1;
    char temp[IO_PATH_BYTES];
    TRY(io_create_beside(path, temp, &fd));
    err = io_write_all(fd, data, bytes);
    if (err != CF_OK) {
        unlink(temp);
        io_close(&fd);
        return err_context(err, "%s", path);
    }
    (void)sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE); /* starts it; io_file_commit waits and sees errors */
    *ret_fd = fd;
out:
    return err;
}

cf_err io_file_commit(const char *path, int *fd)
{
    cf_err err;
    char temp[IO_PATH_BYTES];
    TRY(temp_path(path, temp));
    err = io_put_in_place(*fd, temp, path);
    if (err != CF_OK)
        unlink(temp);
out:
    io_close(fd);
    return err;
}

cf_err io_write_file(const char *path, const void *data, size_t bytes)
{
    cf_err err;
    int fd = -1;
    TRY(io_file_begin(path, data, bytes, &fd));
    TRY(io_file_commit(path, &fd));
    TRY(io_sync_folder_of(path));
out:
    return err;
}

cf_err io_check_folder_of(const char *path)
{
    char folder[IO_PATH_BYTES];
    if (snprintf(folder, sizeof folder, "%s", path) >= (int)sizeof folder)
        return err_set(CF_ERR_LIMIT, "%.80s...: path longer than %d bytes", path, IO_PATH_BYTES);
    for (char *slash; (slash = strrchr(folder, '/')) != NULL;) {
        slash[slash == folder] = '\0';
        if (access(folder, W_OK | X_OK) == 0)
            return CF_OK;
        if (errno != ENOENT || slash == folder)
            return err_set(CF_ERR_STORAGE, "%s: no file can be put into this folder: %s", folder, strerror(errno));
    }
    return CF_OK; /* beside us */
}

cf_err io_make_dirs(const char *path, mode_t mode)
{
    char part[IO_PATH_BYTES];
    struct stat st;
    if (snprintf(part, sizeof part, "%s", path) >= (int)sizeof part)
        return err_set(CF_ERR_LIMIT, "%.80s...: path longer than %d bytes", path, IO_PATH_BYTES);
    if (fault_hit("io.mkdir")) {
        errno = EROFS;
        return err_sys("%s: mkdir", path);
    }
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        return CF_OK; /* mostly; one call instead of one for each part */
    for (char *p = part + 1;; p++) {
        if (*p != '/' && *p != '\0')
            continue;
        const char saved = *p;
        *p = '\0';
        if ((fault_hit("io.mkdir") ? (errno = EROFS, -1) : mkdir(part, mode)) != 0 && errno != EEXIST)
            return err_put("mkdir", part);
        if (saved == '\0')
            break;
        *p = saved;
    }
    if (stat(part, &st) != 0 || !S_ISDIR(st.st_mode))
        return err_set(CF_ERR_INVALID, "%s: exists and is not a folder", part);
    return CF_OK;
}

const char *io_temp_root(void)
{
    const char *env = getenv("TMPDIR");
    return env && *env ? env : P_tmpdir;
}

cf_err io_temp_dir(const char *parent, const char *prefix, char *ret_path, size_t path_bytes)
{
    const char *folder = parent ? parent : io_temp_root();
    if ((size_t)snprintf(ret_path, path_bytes, "%s/%s-XXXXXX", folder, prefix) >= path_bytes)
        return err_set(CF_ERR_LIMIT, "%s: the path of a temporary folder is longer than %zu bytes", folder, path_bytes);
    if (!mkdtemp(ret_path))
        return err_sys("%s: mkdtemp", ret_path);
    return CF_OK;
}

bool io_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

/* A path that leads nowhere, for us, now and at the next try. */
static bool leads_nowhere(int code)
{
    return code == ENOENT || code == ENOTDIR || code == EACCES || code == ELOOP || code == ENAMETOOLONG;
}

cf_err io_stat(const char *path, struct stat *ret_st)
{
    if ((fault_hit("io.stat") ? (errno = EIO, -1) : stat(path, ret_st)) == 0)
        return CF_OK;
    return leads_nowhere(errno) ? err_set(CF_ERR_NOTFOUND, "%s: %s", path, strerror(errno)) : err_sys("%s", path);
}

cf_err io_find(const char *path, bool *ret_is_there)
{
    struct stat st;
    const cf_err err = io_stat(path, &st);
    if (err != CF_OK && err != CF_ERR_NOTFOUND)
        return err;
    *ret_is_there = err == CF_OK;
    return CF_OK;
}

cf_err io_next_entry(DIR *dir, const char *path, struct dirent **ret_entry)
{
    errno = 0; /* stays 0 at the end */
    *ret_entry = fault_hit("io.entry") ? (errno = EIO, NULL) : readdir(dir);
    return *ret_entry || errno == 0 ? CF_OK : err_sys("%s: read", path);
}

cf_err io_pidfd_open(pid_t pid, int *ret_fd)
{
    const int fd = fault_hit("io.pidfd") ? (errno = EMFILE, -1) : (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0)
        return errno == ESRCH ? err_set(CF_ERR_GONE, "process %ld has ended", (long)pid)
                              : err_sys("pidfd_open of %ld", (long)pid);
    *ret_fd = fd;
    return CF_OK;
}

cf_err io_pidfd_kill(int pid_fd)
{
    if (syscall(SYS_pidfd_send_signal, pid_fd, SIGKILL, NULL, 0) != 0 && errno != ESRCH)
        return err_sys("pidfd_send_signal");
    return CF_OK;
}

void io_close(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

cf_err io_join(char *ret_path, size_t path_bytes, const char *a, const char *b)
{
    if (snprintf(ret_path, path_bytes, "%s/%s", a, b) >= (int)path_bytes)
        return err_set(CF_ERR_LIMIT, "%.80s/%.80s: path longer than %zu bytes", a, b, path_bytes);
    return CF_OK;
}
