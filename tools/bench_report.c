/* bench_report.c - see bench_report.h. */
#include "tools/bench_report.h"

#include <stdio.h>

#include "common/base/mem.h"

json *bench_object(const char *what)
{
    json *obj = json_object();
    json_put_str(obj, "bench", what);
    return obj;
}

void bench_emit(bool as_json, json *obj, const char *line)
{
    char *text = NULL;
    if (!as_json)
        puts(line);
    else if (json_print(obj, false, &text) == CF_OK)
        puts(text);
    mem_free(text);
    json_close(obj);
    fflush(stdout);
}
