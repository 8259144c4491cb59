/*
 * config_keys.h - every configuration key, once: X(type, key, default, min, max, help). Documentation, defaults,
 * bounds and the parser come from this table. Types: STR (max is the length in bytes), INT, BOOL. Not one key is
 * reloadable: a change needs a restart of the farm.
 */
#ifndef CF_BASE_CONFIG_KEYS_H
#define CF_BASE_CONFIG_KEYS_H

#define CONFIG_KEYS(X)                                                                                             \
    X(STR, model, "", 0, 1023, "model directory")                                                                  \
    X(STR, device, "cpu", 0, 255, "device of workers: cpu, cuda:N, or a list that worker 0, 1, ... take in turn")  \
    X(STR, llm_device, "", 0, 255, "the same of llm workers alone; empty: device")                                 \
    X(STR, flow_device, "", 0, 255, "the same of flow workers alone; empty: device")                               \
    X(STR, hift_device, "", 0, 255, "the same of hift workers alone; empty: device")                               \
    X(STR, precision, "f32", 0, 7,                                                                                 \
      "GEMM operands: f32, bf16, fp16 (cuda), int8 (cpu): bf16 with the LLM's weights in int8")                    \
    X(BOOL, base_weights, 0, 0, 1, "take llm.pt although llm.rl.pt exists")                                        \
    X(BOOL, strict_head, 0, 0, 1, "below the minimum length mask id 6561 alone, as upstream's HEAD does")          \
    X(BOOL, streaming_mask, 0, 0, 1, "Flow attends in blocks of 50 frames, as upstream's streaming calls do")      \
    X(BOOL, naive, 0, 0, 1, "plain reference loops instead of the fast backend")                                   \
    X(INT, llm_workers, 1, 0, 16, "llm workers")                                                                   \
    X(INT, flow_workers, 1, 0, 16, "flow workers")                                                                 \
    X(INT, hift_workers, 1, 0, 16, "hift workers")                                                                 \
    X(INT, llm_rows, 16, 1, 256, "sequences one llm worker decodes together")                                      \
    X(INT, flow_rows, 16, 1, 256, "jobs one flow worker solves together")                                          \
    X(INT, flow_frames, 8192, 1, 65536, "mel frames, prompts included, one flow worker packs in a step")           \
    X(INT, hift_rows, 16, 1, 256, "jobs one hift worker renders together")                                         \
    X(INT, hift_frames, 6000, 1, 65536, "mel frames one hift worker packs in a step")                              \
    X(INT, threads, 0, 0, 256, "compute threads of each worker; 0: as many as it may run on")                      \
    X(INT, outbox_mib, 64, 4, 4096, "exchange memory of one worker, MiB")                                          \
    X(INT, utterances_max, 256, 1, 256,                                                                            \
      "utterances accepted at once, an eighth kept for say; more are refused as busy")                             \
    X(INT, text_tokens_max, 16384, 256, 1048576,                                                                   \
      "text tokens of all accepted utterances, an eighth kept for say; one row alone may exceed it")               \
    X(INT, deaths_max, 3, 1, 100,                                                                                  \
      "worker deaths at one stage before a segment is given up; the last two hit it alone")                        \
    X(INT, parole_s, 30, 1, 86400,                                                                                 \
      "seconds until a barred worker is tried with one job; twice as long after each death")                       \
    X(INT, parole_max_s, 600, 1, 86400, "what that pause doubles up to")                                           \
    X(INT, barred_s, 60, 1, 86400, "seconds beyond parole_s that batch waits for a stage of barred workers")       \
    X(INT, unserved_s, 300, 1, 86400,                                                                              \
      "seconds that batch, and say on a running farm, wait for a stage that none serves")                          \
    X(INT, storage_wait_s, 600, 0, 86400, "seconds that a finished row waits for a full or read-only file system") \
    X(STR, journal, "", 0, 1023, "file of accepted rows; empty: journal in the run directory")                     \
    X(STR, voice_store, "", 0, 1023, "folder of voices made from recordings; empty: voices in the run directory")  \
    X(INT, voice_store_mib, 256, 1, 1048576, "what that folder may hold; the longest unused go")                   \
    X(INT, enroll_jobs, 1, 1, 8, "recordings enrolled at once, a process each")                                    \
    X(INT, enroll_s, 300, 1, 86400, "seconds that enrolling one recording may take")                               \
    X(STR, trace, "", 0, 1023, "folder for the workers' Chrome trace events, a file per process; empty: none")     \
    X(INT, stall_s, 300, 5, 86400, "seconds without a step after which a worker that holds jobs is ended")         \
    X(INT, load_s, 600, 5, 86400, "seconds that a worker may take to load its model before it is ended")           \
    X(INT, silence_s, 20, 2, 3600, "seconds without a heartbeat after which a worker counts as lost")              \
    X(INT, grace_s, 20, 0, 3600, "seconds that a drain may take before workers are stopped")                       \
    X(BOOL, guard, 1, 0, 1, "check every finished row for bad speech")                                             \
    X(INT, guard_attempts, 2, 0, 16, "times a flagged row is spoken again with another seed")                      \
    X(BOOL, guard_fail, 0, 0, 1, "a row that stays flagged fails instead of being done with its flags")            \
    X(INT, guard_dense_per_s_min, 2, 1, 100, "slowest Han, kana and Hangul, characters per second")                \
    X(INT, guard_dense_per_s_max, 12, 1, 1000, "fastest Han, kana and Hangul, characters per second")              \
    X(INT, guard_letters_per_s_min, 6, 1, 100, "slowest letters of alphabets per second")                          \
    X(INT, guard_letters_per_s_max, 30, 1, 1000, "fastest letters of alphabets per second")                        \
    X(INT, guard_length_slack_ms, 2000, 0, 600000, "milliseconds a segment may last longer than that")             \
    X(INT, guard_loop_tokens, 25, 1, 7500, "speech tokens said again in one stretch, 25 a second")                 \
    X(INT, guard_leak_tokens, 10, 1, 750, "speech tokens of the prompt at the beginning of a segment")             \
    X(INT, guard_silence_ms, 2000, 0, 600000, "longest silence inside a row")                                      \
    X(INT, guard_silence_ends_ms, 1500, 0, 600000, "longest silence at either end of a row")                       \
    X(INT, guard_silence_level_ppm, 3000, 1, 1000000, "RMS below which 10 ms are silent, of full scale")           \
    X(INT, guard_clip_permille, 10, 0, 1000, "clipped samples of a segment")                                       \
    X(INT, guard_dc_permille, 500, 0, 1000, "mean of a segment, of its RMS")

#endif
