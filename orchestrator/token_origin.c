/*
 * token_origin.c - hashes over whatever the llm's tokens depend on, and the comparison at a recovery. The shell's
 * thread; owns nothing. Integers are hashed as they lie in memory: a journal that moves to a host of another byte order
 * loses its tokens and none of its rows.
 * Fails: CF_ERR_NOMEM; CF_ERR_NOTFOUND, CF_ERR_SYS of the files of the model directory.
 */
#define _GNU_SOURCE
#include "orchestrator/token_origin.h"

#include <stdio.h>
#include <string.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/model/model_dir.h"
#include "common/model/network_hash.h"

#define BACKBONE_CONFIG "CosyVoice-BlankEN/config.json"

cf_err token_maker(const config *cfg, const char *llm_sha256, char ret_maker[SHA256_HEX_BYTES])
{
    cf_err err;
    char path[IO_PATH_BYTES], backbone[SHA256_HEX_BYTES], text[1024];
    io_map map = {0};
    TRY(io_join(path, sizeof path, cfg->model, BACKBONE_CONFIG));
    TRY(io_map_file(path, &map));
    TRY(sha256_of(map.data, map.data_bytes, backbone));
    const int bytes = snprintf(text, sizeof text, "%s %s %s strict_head=%d naive=%d llm=%s backbone=%s", CF_VERSION,
                               config_device_list(cfg, model_stage_name(MODEL_LLM)), cfg->precision, cfg->strict_head,
                               cfg->naive, llm_sha256, backbone);
    TRY(sha256_of(text, (size_t)bytes, ret_maker));
out:
    io_unmap(&map);
    return err;
}

cf_err token_maker_now(const config *cfg, char ret_maker[SHA256_HEX_BYTES])
{
    cf_err err;
    char path[IO_PATH_BYTES], llm_sha256[SHA256_HEX_BYTES];
    TRY(model_dir_stage_file(cfg->model, MODEL_LLM, cfg->base_weights, path));
    TRY(network_sha256(cfg->model, strrchr(path, '/') + 1, llm_sha256));
    TRY(token_maker(cfg, llm_sha256, ret_maker));
out:
    return err;
}

static void add_ids(sha256 *h, const int32_t *ids, size_t count)
{
    sha256_update(h, &count, sizeof count);
    if (count > 0)
        sha256_update(h, ids, count * sizeof *ids);
}

cf_err token_origin(const session *s, const char *maker, int32_t attempt, int32_t segment,
                    char ret_sha256[SHA256_HEX_BYTES])
{
    sha256 *h;
    const uint64_t numbers[] = {s->seed, (uint64_t)attempt, s->prompt_speech};
    const text_segment *text = &s->plan.segments[segment];
    const cf_err err = sha256_open(&h);
    if (err != CF_OK)
        return err;
    sha256_update(h, maker, strlen(maker));
    sha256_update(h, s->voice_sha256, strlen(s->voice_sha256));
    sha256_update(h, numbers, sizeof numbers);
    add_ids(h, s->plan.prompt_ids, s->plan.prompt_id_count);
    add_ids(h, text->ids, text->id_count);
    sha256_finish(h, ret_sha256);
    return CF_OK;
}

cf_err token_origin_sift(session *s, const char *maker)
{
    cf_err err = CF_OK;
    int32_t kept = 0;
    for (int32_t i = 0; i < s->known_count; i++) {
        journal_tokens *k = &s->known[i];
        char present[SHA256_HEX_BYTES] = "";
        if ((size_t)k->segment < s->plan.segment_count)
            TRY(token_origin(s, maker, k->attempt, k->segment, present));
        if (present[0] && strcmp(k->origin_sha256, present) == 0) {
            const journal_tokens moved = s->known[kept];
            s->known[kept++] = *k;
            *k = moved;
        }
    }
    if (kept < s->known_count)
        log_info(
            "row.tokens_dropped",
            "utt=%s sets=%d of=%d text=\"made by another model, precision, device, version, voice or text than the "
            "present ones\"",
            s->id, s->known_count - kept, s->known_count);
    while (s->known_count > kept)
        mem_free(s->known[--s->known_count].tokens);
out:
    return err;
}
