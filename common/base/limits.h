/*
 * limits.h - every bound of the system, with its unit and its reason. A limit that is hit is an error message that
 * names it.
 */
#ifndef CF_BASE_LIMITS_H
#define CF_BASE_LIMITS_H

/* Rates: 25 speech tokens/s -> 50 mel frames/s -> 24000 samples/s. */
#define TOKENS_PER_SECOND 25
#define FRAMES_PER_TOKEN  2
#define SAMPLES_PER_FRAME 480
#define SAMPLE_RATE_HZ    24000
#define MEL_BINS          80
#define SPEAKER_VALUES    192

/* Speech vocabulary (llm.md 3): the released one, and the largest. A model of fewer rows has codes 0..N-1 and its
 * control ids behind them, N = rows - SPEECH_CONTROLS. */
#define SPEECH_CODES      6561
#define SPEECH_CONTROLS   200
#define SPEECH_ROWS       (SPEECH_CODES + SPEECH_CONTROLS)
#define TOKEN_SOS(codes)  (codes)
#define TOKEN_EOS(codes)  ((codes) + 1)
#define TOKEN_TASK(codes) ((codes) + 2)
/* Codes of silence and breath (llm.md 9) of the released vocabulary; no other one has a list. */
#define SPEECH_SILENT 1, 2, 28, 29, 55, 248, 494, 2241, 2242, 2322, 2323

/* The fixed noise table has 15000 frames: 300 s with the prompt (flow.md 4.1). */
#define FRAMES_MAX 15000
#define TOKENS_MAX (FRAMES_MAX / FRAMES_PER_TOKEN)

/* A prompt recording is at most 30 s (llm.md 5). */
#define PROMPT_TOKENS_MAX 750
#define PROMPT_FRAMES_MAX (PROMPT_TOKENS_MAX * FRAMES_PER_TOKEN)

/* Text of one utterance (interface.md 2), of one segment, and of a prompt. */
#define TEXT_CHARS_MAX          10000
#define TEXT_BYTES_MAX          (TEXT_CHARS_MAX * 4)
#define ROW_RECORDING_BYTES_MAX (64 << 20) /* of a row: 30 s in any sane format, hashed in the control loop */
#define VOICE_PROMPT_BYTES_MAX  16384      /* transcript of a voice's recording */
#define SEGMENT_TEXT_TOKENS_MAX 4096
#define PROMPT_TEXT_TOKENS_MAX  1024
#define SEGMENTS_MAX            512

/* LLM length law (llm.md 6.1): between 2 and 20 speech tokens for each text token, never more than the flow can take.
 * */
#define SPEECH_PER_TEXT_MIN 2
#define SPEECH_PER_TEXT_MAX 20
/* Positions of one sequence: sos, prompt text, text, task, prompt speech, generated. */
#define SEQUENCE_TOKENS_MAX (2 + PROMPT_TEXT_TOKENS_MAX + SEGMENT_TEXT_TOKENS_MAX + PROMPT_TOKENS_MAX + TOKENS_MAX)

/* Control plane. */
#define MESSAGE_BYTES_MAX   65536 /* one control message; 7500 token ids in JSON take at most 37 KiB */
#define MESSAGE_DEPTH_MAX   8
#define MEMBERS_MAX         64   /* workers of all stages on one orchestrator */
#define STAFF_MAX           60   /* workers of one supervisor; with keeper and callers below MEMBERS_MAX */
#define DEVICES_MAX         64   /* CUDA devices of one host: cuda:0..cuda:63 */
#define INSTANCES_MAX       1000 /* numbers of one stage's workers: 0..999 */
#define UNPROVEN_DEATHS_MAX 3    /* deaths before a first finished job that end the feeding of an instance */
#define UNSERVED_ENDS_MAX   8    /* ends of a private farm's process before it served, 6 s of pauses: say gives up */
#define ALONE_DEATHS_MAX    2    /* deaths that hit a row alone before it is given up: one may come from outside */
#define REREADS_MAX         8    /* times a segment's mel may be lost before its row is given up */
#define JOBS_PER_MEMBER_MAX 256
#define UTTERANCES_MAX      256                  /* accepted at once; more are refused with CF_ERR_BUSY */
#define INTERACTIVE_SHARE   8                    /* one in so many places is kept for rows that cannot wait: `say` */
#define ROWS_OPEN_MAX       (4 * UTTERANCES_MAX) /* after a restart: accepted rows, and ends not yet on disk */
#define CLIENTS_MAX         64
#define NAME_BYTES_MAX      200 /* ids and voice names */

#ifdef __cplusplus
#define CF_STATIC_ASSERT(c, m) static_assert(c, m)
#else
#define CF_STATIC_ASSERT(c, m) _Static_assert(c, m)
#endif
CF_STATIC_ASSERT(TOKENS_MAX * 5 + 4096 < MESSAGE_BYTES_MAX, "a full token list must fit a message");
CF_STATIC_ASSERT(PROMPT_FRAMES_MAX < FRAMES_MAX, "a prompt must leave room for speech");

#endif
