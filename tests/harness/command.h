/*
 * command.h - calls a verb of the command inside the test program and keeps what it printed.
 */
#ifndef CF_TESTS_HARNESS_COMMAND_H
#define CF_TESTS_HARNESS_COMMAND_H

/* stdout and stderr of the last command_run, NUL-terminated. */
extern char command_out[1 << 18], command_errors[1 << 16];

/* Calls verb(argc, argv) with both streams in files; argv ends with NULL. Returns the exit code. */
int command_run(int (*verb)(int, char **), char *const *argv);

/* COMMAND(cmd_parity, "parity", "-m", dir): arguments are char * or literals. */
#define COMMAND(verb, ...) command_run(verb, (char *const[]){__VA_ARGS__, NULL})

#endif
