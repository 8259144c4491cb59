/*
 * orch_kept.c - what a person told of workers outlives the orchestrator: who is drained, who is still to be restarted.
 * One small file in the run directory, replaced at each change; it goes when the farm ends or another one begins.
 * Part of the shell, its one thread.
 *
 *   {"paused":[{"stage":"hift","instance":1}], "restart":[{"stage":"flow","instance":0,"pid":4711}]}
 *
 * A restart names the process: another one of its number has been restarted. Records of deaths are not kept: a new
 * orchestrator does not know how often rows died either.
 * Fails: kept_recover with CF_ERR_NOMEM and CF_ERR_SYS: wishes are not to be forgotten for a shortage that may be over
 * at the next start. Else by a warning: a wish that cannot be kept is obeyed, and would be forgotten with this
 * orchestrator.
 */
#define _GNU_SOURCE
#include <string.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "common/model/stage_tables.h"
#include "orchestrator/orch.h"

#define KEPT_BYTES_MAX (CORE_STAGES * INSTANCES_MAX * 128)

static json *worker_json(int stage, int instance)
{
    json *m = json_object();
    json_put_str(m, "stage", model_stage_name(stage));
    json_put_u64(m, "instance", (uint64_t)instance);
    return m;
}

static bool has_wishes(const orch *o)
{
    for (int s = 0; s < CORE_STAGES; s++)
        for (int i = 0; i < INSTANCES_MAX; i++)
            if (o->paused[s][i] || o->to_restart[s][i])
                return true;
    return false;
}

static json *kept_json(const orch *o)
{
    json *root = json_object(), *paused = json_array(), *restart = json_array();
    for (int s = 0; s < CORE_STAGES; s++)
        for (int i = 0; i < INSTANCES_MAX; i++) {
            if (o->paused[s][i])
                json_push(paused, worker_json(s, i));
            if (o->to_restart[s][i]) {
                json *m = worker_json(s, i);
                json_put_u64(m, "pid", (uint64_t)o->to_restart[s][i]);
                json_push(restart, m);
            }
        }
    json_put(root, "paused", paused);
    json_put(root, "restart", restart);
    return root;
}

static cf_err write_kept(const orch *o, const char *path)
{
    cf_err err = CF_OK;
    char *text = NULL;
    json *root = NULL;
    if (!has_wishes(o)) {
        unlink(path);
        return CF_OK;
    }
    root = kept_json(o);
    TRY(json_print(root, false, &text));
    TRY(io_write_file(path, text, strlen(text)));
out:
    json_close(root);
    mem_free(text);
    return err;
}

void kept_save(const orch *o)
{
    char path[IO_PATH_BYTES];
    cf_err err = io_join(path, sizeof path, o->run_dir, RUN_KEPT);
    if (err == CF_OK)
        err = write_kept(o, path);
    if (err != CF_OK)
        log_warn("steer.unsaved", "text=\"%s\"", err_text());
}

static cf_err read_worker(const json *m, int *ret_stage, int *ret_instance)
{
    cf_err err;
    const char *name;
    uint64_t instance;
    int stage = 0;
    TRY(json_get_str(m, "stage", 15, &name));
    TRY(json_get_u64(m, "instance", 0, INSTANCES_MAX - 1, &instance));
    while (stage < CORE_STAGES && strcmp(model_stage_name(stage), name) != 0)
        stage++;
    if (stage == CORE_STAGES)
        FAIL(CF_ERR_INVALID, "stage \"%s\": expected llm, flow or hift", name);
    *ret_stage = stage;
    *ret_instance = (int)instance;
out:
    return err;
}

static cf_err take(orch *o, const json *root)
{
    cf_err err = CF_OK;
    int stage, instance;
    for (const json *m = json_first(json_find(root, "paused")); m; m = json_next(m)) {
        TRY(read_worker(m, &stage, &instance));
        o->paused[stage][instance] = true;
    }
    for (const json *m = json_first(json_find(root, "restart")); m; m = json_next(m)) {
        uint64_t pid;
        TRY(read_worker(m, &stage, &instance));
        TRY(json_get_u64(m, "pid", 1, INT32_MAX, &pid));
        o->to_restart[stage][instance] = (pid_t)pid;
    }
out:
    return err;
}

cf_err kept_recover(orch *o)
{
    cf_err err;
    char path[IO_PATH_BYTES], *text = NULL;
    size_t bytes;
    json *root = NULL;
    TRY(io_join(path, sizeof path, o->run_dir, RUN_KEPT));
    err = io_read_file(path, KEPT_BYTES_MAX, &text, &bytes);
    if (err == CF_ERR_NOTFOUND)
        return CF_OK;
    if (err != CF_OK)
        goto out;
    TRY(json_parse(text, bytes, 4, &root));
    TRY(take(o, root));
    log_info("steer.recovered", "file=%s", path);
out:
    json_close(root);
    mem_free(text);
    if (err == CF_OK || err == CF_ERR_NOMEM || err == CF_ERR_SYS)
        return err;
    log_warn("steer.unread", "file=%s text=\"%s\"", path, err_text());
    return CF_OK;
}

void kept_forget(const orch *o)
{
    char path[IO_PATH_BYTES];
    if (io_join(path, sizeof path, o->run_dir, RUN_KEPT) == CF_OK)
        unlink(path);
}
