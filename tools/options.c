/*
 * options.c - see options.h. One thread. Reads getopt's own variables. Fails: CF_ERR_INVALID, that is what it is for.
 */
#include "tools/options.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "tools/cmd.h"

cf_err options_refused(char *const *argv, const char *verb)
{
    const char *word = argv[optind - 1];
    if (strncmp(word, "--", 2) != 0)
        return err_set(CF_ERR_INVALID,
                       "option \"-%c\" is not known or lacks its value; cosyfarm %s --help tells the options", optopt,
                       verb);
    return err_set(CF_ERR_INVALID, "option \"%s\" %s; cosyfarm %s --help tells the options", word,
                   optopt == 0         ? "is not known, or may mean several"
                   : strchr(word, '=') ? "takes no value"
                                       : "lacks its value",
                   verb);
}

cf_err options_no_operands(int argc, char *const *argv)
{
    return optind == argc ? CF_OK : err_set(CF_ERR_INVALID, "unexpected argument \"%s\"", argv[optind]);
}

int options_no_model(const char *verb)
{
    fprintf(stderr, "cosyfarm %s: " OPTIONS_NO_MODEL "\n", verb);
    return EXIT_CONFIG;
}
