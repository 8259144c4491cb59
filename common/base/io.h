/*
 * io.h - files and descriptors: whole reads, atomic writes, read-only maps, pidfds. EINTR is handled here only; every
 * descriptor is close-on-exec.
 */
#ifndef CF_BASE_IO_H
#define CF_BASE_IO_H

#include <dirent.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define IO_PATH_BYTES 4096

/* A file mapped read-only. data is NULL for an empty file. The mapping outlives nothing: io_unmap before exit. */
typedef struct io_map {
    const unsigned char *data; /* owned mapping */
    size_t data_bytes;
} io_map;

CF_MUST_CHECK cf_err io_map_file(const char *path, io_map *ret_map);
void io_unmap(io_map *m);

/* The whole file, NUL-terminated behind its last byte; CF_ERR_LIMIT above bytes_max. Caller owns: mem_free. */
CF_MUST_CHECK cf_err io_read_file(const char *path, size_t bytes_max, char **ret_text, size_t *ret_bytes);

/* Temporary file in the same folder, fsync, rename, fsync of the folder: readers see all of it or none. */
CF_MUST_CHECK cf_err io_write_file(const char *path, const void *data, size_t bytes);

/* The halves of an atomic write: a new temporary file beside path; fsync, rename to path, fsync of the folder. The
 * caller closes fd and, after a failure, unlinks temp. io_put_in_place leaves the folder to the caller, who has to know
 * whether the name is the new file's already. */
CF_MUST_CHECK cf_err io_create_beside(const char *path, char ret_temp[IO_PATH_BYTES], int *ret_fd);
CF_MUST_CHECK cf_err io_commit(int fd, const char *temp, const char *path);
CF_MUST_CHECK cf_err io_put_in_place(int fd, const char *temp, const char *path);

/* The steps of io_write_file, so that the waiting of many files overlaps: begin all (a temporary file each, its writing
 * back started), commit all (fsync, rename), then io_sync_folder_of each folder. A failed step leaves no file behind.
 * */
CF_MUST_CHECK cf_err io_file_begin(const char *path, const void *data, size_t bytes, int *ret_fd);
CF_MUST_CHECK cf_err io_file_commit(const char *path, int *fd);
CF_MUST_CHECK cf_err io_sync_folder_of(const char *path);

/* Removes from a folder what writers that were killed left of those paths for which is_ours is true. For who knows that
 * nobody writes them now. What cannot be removed stays. */
void io_remove_leftovers(const char *folder, bool (*is_ours)(void *ctx, const char *path), void *ctx);

/* Loops over short writes. */
CF_MUST_CHECK cf_err io_write_all(int fd, const void *data, size_t bytes);

/* May files be put into the folder of path? Of folders that do not exist the nearest that does is asked.
 * CF_ERR_STORAGE says why not. */
CF_MUST_CHECK cf_err io_check_folder_of(const char *path);

/* mkdir -p with mode for the folders it makes. */
CF_MUST_CHECK cf_err io_make_dirs(const char *path, mode_t mode);

/* $TMPDIR, else the system's folder for temporary files. */
const char *io_temp_root(void);

/* A new folder PARENT/prefix-XXXXXX with mode 0700; parent NULL: io_temp_root. */
CF_MUST_CHECK cf_err io_temp_dir(const char *parent, const char *prefix, char *ret_path, size_t path_bytes);

bool io_exists(const char *path);

/* Where it matters that a file is not there, and not merely out of reach for a moment. io_stat: CF_ERR_NOTFOUND when
 * the path leads to no file of ours, CF_ERR_SYS when that cannot be told. io_find: the same as a question. */
struct stat;
CF_MUST_CHECK cf_err io_stat(const char *path, struct stat *ret_st);
CF_MUST_CHECK cf_err io_find(const char *path, bool *ret_is_there);

/* The next entry of an open folder, NULL behind the last; path is for the error's text. CF_ERR_SYS: there may be more.
 */
CF_MUST_CHECK cf_err io_next_entry(DIR *dir, const char *path, struct dirent **ret_entry);

/* A pidfd: readable when the process has ended. CF_ERR_GONE when there is no such process. */
CF_MUST_CHECK cf_err io_pidfd_open(pid_t pid, int *ret_fd);

/* SIGKILL to the process behind a pidfd; one that has ended already is fine. */
CF_MUST_CHECK cf_err io_pidfd_kill(int pid_fd);

/* Closes *fd if it is not negative and sets it to -1. */
void io_close(int *fd);

/* path = a "/" b, checked against the buffer; CF_ERR_LIMIT when it does not fit. */
CF_MUST_CHECK cf_err io_join(char *ret_path, size_t path_bytes, const char *a, const char *b);

#ifdef __cplusplus
}
#endif
#endif
