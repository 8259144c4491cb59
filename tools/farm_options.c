/*
 * farm_options.c - shared option parsing and the life of a private farm. One thread. Fails: CF_ERR_INVALID and what
 * model_dir and spawn fail with.
 */
#define _GNU_SOURCE
#include "tools/farm_options.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/device.h"
#include "common/base/process.h"
#include "common/compute/backend.h"
#include "common/model/model_dir.h"
#include "common/model/stage_tables.h"
#include "tools/options.h"

#define RUN_PREFIX  "cosyfarm"
#define OWNER_FILE  "owner"
#define OWNER_TRIES 8

void farm_options_init(farm_options *o)
{
    *o = (farm_options){0};
    config_defaults(&o->cfg);
    const char *env = getenv("COSYFARM_MODEL");
    if (env && *env && strlen(env) < sizeof o->cfg.model) {
        memcpy(o->cfg.model, env, strlen(env) + 1);
        o->model_given = true;
    }
}

/* Takes obj. A key that found no memory would otherwise leave the default. */
static cf_err apply_built(config *cfg, json *obj, const char *option)
{
    cf_err err;
    TRY(json_check_built(obj));
    TRY(config_apply(cfg, obj, option));
out:
    json_close(obj);
    return err;
}

/* A command-line value goes through the same table as a configuration file's. */
static cf_err set_key(config *cfg, const char *option, const char *key, const char *value, bool is_number)
{
    char *end;
    const double number = strtod(value, &end);
    if (is_number && (*end || end == value))
        return err_set(CF_ERR_INVALID, "%s: expected a number, found \"%s\"", option, value);
    json *obj = json_object();
    if (is_number)
        json_put_f64(obj, key, number);
    else
        json_put_str(obj, key, value);
    return apply_built(cfg, obj, option);
}

/* Options that are keys of the configuration. */
static const struct {
    int letter;
    const char *option, *key;
    enum { OPTION_TEXT, OPTION_NUMBER, OPTION_FLAG } kind;
} key_options[] = {
    {'m', "--model", "model", OPTION_TEXT},
    {1002, "--device", "device", OPTION_TEXT},
    {1003, "--precision", "precision", OPTION_TEXT},
    {1004, "--threads", "threads", OPTION_NUMBER},
    {1005, "--base-weights", "base_weights", OPTION_FLAG},
    {1006, "--llm", "llm_workers", OPTION_NUMBER},
    {1007, "--flow", "flow_workers", OPTION_NUMBER},
    {1008, "--hift", "hift_workers", OPTION_NUMBER},
    {1009, "--naive", "naive", OPTION_FLAG},
};
CF_STATIC_ASSERT(CF_COUNT(key_options) == FARM_KEY_OPTIONS, "an option has no place for its value");

static cf_err apply_option(farm_options *o, size_t i)
{
    if (key_options[i].kind != OPTION_FLAG)
        return set_key(&o->cfg, key_options[i].option, key_options[i].key, o->given[i],
                       key_options[i].kind == OPTION_NUMBER);
    json *obj = json_object();
    json_put_bool(obj, key_options[i].key, true);
    return apply_built(&o->cfg, obj, key_options[i].option);
}

static bool is_precision(const char *word)
{
    static const char *const words[] = {"f32", "bf16", "fp16", "int8"};
    for (size_t i = 0; i < CF_COUNT(words); i++)
        if (strcmp(word, words[i]) == 0)
            return true;
    return false;
}

static cf_err check_device_words(const char *list)
{
    for (int i = 0; i < device_list_count(list); i++) {
        char text[DEVICE_TEXT_BYTES];
        int device;
        const cf_err err = device_of_instance(list, i, text, &device);
        if (err != CF_OK)
            return err_context(err, "--device");
    }
    return CF_OK;
}

/* Words that are never right, whether a farm runs or not. */
static cf_err check_word(const char *key, const char *value)
{
    if (strcmp(key, "device") == 0)
        return check_device_words(value);
    if (strcmp(key, "precision") == 0 && !is_precision(value))
        return err_set(CF_ERR_INVALID, "--precision: expected f32, bf16, fp16 or int8, found \"%s\"", value);
    return CF_OK;
}

bool farm_options_take(farm_options *o, int letter, const char *value, cf_err *ret_err)
{
    *ret_err = CF_OK;
    if (letter == 1001) {
        if (o->config_path)
            *ret_err = err_set(CF_ERR_INVALID, "--config: given twice");
        o->config_path = value;
        return true;
    }
    for (size_t i = 0; i < FARM_KEY_OPTIONS; i++) {
        if (letter != key_options[i].letter)
            continue;
        o->given[i] = key_options[i].kind == OPTION_FLAG ? "" : value;
        o->model_given = o->model_given || letter == 'm';
        o->precision_given = o->precision_given || strcmp(key_options[i].key, "precision") == 0;
        *ret_err = check_word(key_options[i].key, o->given[i]);
        if (*ret_err == CF_OK)
            *ret_err = apply_option(o, i);
        return true;
    }
    return false;
}

/* A file loses against the options. */
static cf_err load_file(farm_options *o)
{
    cf_err err;
    config defaults;
    config_defaults(&defaults);
    o->cfg.precision[0] = '\0'; /* to see whether the file names one */
    TRY(config_load(&o->cfg, o->config_path));
    o->precision_given = o->precision_given || o->cfg.precision[0];
    if (!o->cfg.precision[0])
        memcpy(o->cfg.precision, defaults.precision, sizeof o->cfg.precision);
    for (size_t i = 0; i < FARM_KEY_OPTIONS; i++)
        if (o->given[i])
            TRY(apply_option(o, i));
    o->model_given = o->model_given || o->cfg.model[0];
out:
    return err;
}

cf_err farm_options_load(farm_options *o)
{
    cf_err err = CF_OK;
    const char *env = getenv("COSYFARM_MODEL");
    if (o->config_path) {
        err = load_file(o);
        if (err == CF_ERR_SYS)
            err = CF_ERR_INVALID; /* whatever keeps it from being read: it is the file that is unusable */
        if (err != CF_OK)
            goto out;
    }
    if (!o->cfg.model[0] && env && strlen(env) >= sizeof o->cfg.model)
        FAIL(CF_ERR_LIMIT, "COSYFARM_MODEL: path longer than %zu bytes", sizeof o->cfg.model - 1);
out:
    return err;
}

static cf_err parse_number(const char *option, const char *text, uint64_t min, uint64_t max, uint64_t *ret_value)
{
    char *end;
    errno = 0;
    const unsigned long long value = strtoull(text, &end, 10);
    if (*end || end == text || text[0] == '-' || errno == ERANGE || value < min || value > max)
        return err_set(CF_ERR_INVALID, "%s: expected %" PRIu64 "..%" PRIu64 ", found \"%s\"", option, min, max, text);
    *ret_value = value;
    return CF_OK;
}

cf_err farm_options_number(const char *option, const char *text, uint64_t max, uint64_t *ret_value)
{
    return parse_number(option, text, 0, max, ret_value);
}

cf_err farm_options_count(const char *option, const char *text, uint64_t max, uint64_t *ret_value)
{
    return parse_number(option, text, 1, max, ret_value);
}

cf_err farm_options_speed(const char *text, double *ret_speed)
{
    char *end;
    const double value = strtod(text, &end);
    if (*end || end == text || !(value >= 0.5 && value <= 2))
        return err_set(CF_ERR_INVALID, "--speed: expected 0.5..2, found \"%s\"", text);
    *ret_speed = value;
    return CF_OK;
}

/* Every device that some worker would run on is there. *ret_cuda: all of them compute with CUDA. */
static cf_err check_devices(const config *cfg, bool *ret_cuda)
{
    cf_err err = CF_OK;
    *ret_cuda = true;
    for (int s = 0; s < MODEL_STAGE_COUNT; s++) {
        const char *list = config_device_list(cfg, model_stage_name((model_stage)s));
        for (int i = 0; i < device_list_count(list); i++) {
            char text[DEVICE_TEXT_BYTES];
            int device;
            TRY(device_of_instance(list, i, text, &device));
            TRY(backend_check_device(text));
            *ret_cuda = *ret_cuda && device != DEVICE_CPU;
        }
    }
out:
    return err;
}

cf_err farm_options_take_demo(farm_options *o)
{
    cf_err err = CF_OK;
    static const char *const places[] = {"../share/cosyfarm/demo", "../../../models/demo"}; /* installed, build tree */
    char path[IO_PATH_BYTES];
    for (size_t i = 0; i < CF_COUNT(places) && !o->cfg.model[0]; i++) {
        TRY(process_sibling(places[i], path, sizeof path));
        if (access(path, R_OK | X_OK) == 0)
            TRY(set_key(&o->cfg, "demo voice", "model", path, false));
    }
out:
    return err;
}

cf_err farm_options_check(farm_options *o)
{
    cf_err err;
    static char absolute[PATH_MAX]; /* one thread; realpath wants this much */
    if (!o->cfg.model[0])
        FAIL(CF_ERR_INVALID, OPTIONS_NO_MODEL);
    bool cuda;
    TRY(check_devices(&o->cfg, &cuda));
    if (strcmp(o->cfg.precision, "f32") != 0 && strcmp(o->cfg.precision, "bf16") != 0 &&
        strcmp(o->cfg.precision, cuda ? "fp16" : "int8") != 0)
        FAIL(CF_ERR_UNSUPPORTED, "precision \"%s\": expected f32, bf16 or %s", o->cfg.precision,
             cuda ? "fp16" : "int8 on cpu");
    if (!realpath(o->cfg.model, absolute))
        FAIL(CF_ERR_NOTFOUND, "%s: no such model directory", o->cfg.model);
    TRY(model_dir_detect(absolute));
    TRY(set_key(&o->cfg, "--model", "model", absolute, false));
out:
    return err;
}

/* What is the running farm's own affair, in one line. */
static void say_ignored(const farm_options *o)
{
    static const char *const own[] = {"device", "threads", "llm_workers", "flow_workers", "hift_workers", "naive"};
    char names[128] = "";
    size_t at = 0;
    for (size_t i = 0; i < FARM_KEY_OPTIONS; i++)
        for (size_t k = 0; o->given[i] && k < CF_COUNT(own); k++)
            if (strcmp(key_options[i].key, own[k]) == 0)
                at += (size_t)snprintf(names + at, sizeof names - at, "%s%s", at ? ", " : "", key_options[i].option);
    if (at > 0)
        fprintf(stderr, "cosyfarm: a farm runs already, with settings of its own: %s ignored\n", names);
}

cf_err farm_options_check_running(const farm_options *o, client *c)
{
    cf_err err;
    wire_msg status = {0};
    const char *computes;
    bool base_weights;
    TRY(client_check_model(c, o->model_given ? o->cfg.model : NULL));
    TRY(client_status(c, &status));
    TRY(json_get_str(wire_json(&status, "config"), "precision", sizeof o->cfg.precision - 1, &computes));
    TRY(json_get_bool(wire_json(&status, "config"), "base_weights", &base_weights));
    if (o->precision_given && strcmp(o->cfg.precision, computes) != 0)
        FAIL(CF_ERR_MISMATCH,
             "the running farm computes in %s, not %s; end it (cosyfarm down) or use another run directory", computes,
             o->cfg.precision);
    if (o->cfg.base_weights && !base_weights)
        FAIL(CF_ERR_MISMATCH, "the running farm was started without --base-weights; end it (cosyfarm down) or use "
                              "another run directory");
    say_ignored(o);
out:
    wire_done(&status);
    return err;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static void remove_tree(const char *path)
{
    nftw(path, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

/* Locks the owner's file of a run directory; -1: somebody has it, or it has none. */
static int lock_owner(const char *run_dir, int flags)
{
    char path[IO_PATH_BYTES];
    struct stat st;
    if (io_join(path, sizeof path, run_dir, OWNER_FILE) != CF_OK)
        return -1;
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | flags, 0600);
    if (fd >= 0 && (flock(fd, LOCK_EX | LOCK_NB) != 0 || fstat(fd, &st) != 0 || st.st_nlink == 0))
        io_close(&fd);
    return fd;
}

/* Not the orchestrator's lock: that is free for a moment whenever it is started again. */
static void remove_ownerless(const char *parent)
{
    char path[IO_PATH_BYTES];
    struct stat st;
    DIR *d = opendir(parent);
    for (const struct dirent *e = d ? readdir(d) : NULL; e; e = readdir(d)) {
        if (strncmp(e->d_name, RUN_PREFIX "-", sizeof RUN_PREFIX) != 0 || strlen(e->d_name) != sizeof RUN_PREFIX + 6 ||
            io_join(path, sizeof path, parent, e->d_name) != CF_OK || lstat(path, &st) != 0 || !S_ISDIR(st.st_mode) ||
            st.st_uid != geteuid())
            continue;
        int fd = lock_owner(path, 0);
        if (fd >= 0)
            remove_tree(path);
        io_close(&fd);
    }
    if (d)
        closedir(d);
}

cf_err private_farm_open(const config *cfg, const char *log_path, private_farm *ret_farm)
{
    cf_err err;
    private_farm p = {.owner_fd = -1};
    if (cfg->llm_workers == 0 || cfg->flow_workers == 0 || cfg->hift_workers == 0)
        return err_set(CF_ERR_INVALID,
                       "a farm of one's own needs a worker of each stage: expected at least 1, found llm_workers %d, "
                       "flow_workers %d, hift_workers %d",
                       cfg->llm_workers, cfg->flow_workers, cfg->hift_workers);
    const char *xdg = getenv("XDG_RUNTIME_DIR");
    const bool usable = xdg && *xdg && access(xdg, W_OK) == 0 && strlen(xdg) < 32; /* sockets have short paths */
    const char *parent = usable ? xdg : io_temp_root();
    remove_ownerless(parent);
    for (int tries = 0; p.owner_fd < 0 && tries < OWNER_TRIES; tries++) {
        TRY(io_temp_dir(parent, RUN_PREFIX, p.run_dir, sizeof p.run_dir));
        p.owner_fd = lock_owner(p.run_dir, O_CREAT); /* another farm that removes may have been a moment faster */
    }
    if (p.owner_fd < 0)
        FAIL(CF_ERR_BUSY, "%s/" OWNER_FILE ": cannot be locked", p.run_dir);
    TRY(io_join(p.log_path, sizeof p.log_path, p.run_dir, "farm.log"));
    TRY(spawn_open(cfg, p.run_dir, log_path ? log_path : p.log_path, &p.farm));
    *ret_farm = p;
out:
    if (err != CF_OK)
        private_farm_close(&p, false);
    return err;
}

void private_farm_close(private_farm *p, bool keep_log)
{
    char kept[sizeof p->log_path + 8] = "";
    if (p->farm)
        spawn_stop(p->farm, clock_now_us() + CLOCK_SECOND_US);
    spawn_close(p->farm);
    if (keep_log) {
        snprintf(kept, sizeof kept, "%s.log", p->run_dir);
        if (rename(p->log_path, kept) != 0)
            kept[0] = '\0';
    }
    if (p->run_dir[0]) {
        remove_tree(p->run_dir);
        io_close(&p->owner_fd);
    }
    *p = (private_farm){0};
    snprintf(p->log_path, sizeof p->log_path, "%.*s", (int)sizeof p->log_path - 1, kept);
}
