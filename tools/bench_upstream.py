#!/usr/bin/env python3
"""Times the original PyTorch implementation at what `cosyfarm bench` times, on the same weights.

    bench_upstream.py --cosyvoice CHECKOUT -m MODEL [--device cuda] [--precision f32|bf16|fp16] [--rows 1,16,64] [--prompt 50]
    cosyfarm bench llm flow hift -m MODEL --device cuda:0 --rows 1,16,64 --prompt 50 --json

CHECKOUT is a clone of FunAudioLLM/CosyVoice whose requirements are installed in the Python that runs this script; MODEL holds
.pt files (`cosyfarm model make MODEL --format pt`). One JSON object a line, with the keys of cosyfarm bench. The original serves
one utterance at a time: N rows are N utterances one after another, which is what a batch of N costs with it. bf16 and fp16
are torch.autocast, as its own server does it; the vocoder stays in f32 there.

Nothing of the original is copied: it is imported from CHECKOUT. See tools/capture_reference.py.
"""
import argparse
import contextlib
import json
import sys
import time

import torch

from capture_reference import ENDOFPROMPT, SPEECH_CODES, Original, made_up_prompt, run_flow, run_llm

TOKENS_PER_SECOND = 25
# 137 rows before the first token, as in cosyfarm bench llm, and about as many steps as it times.
LLM_PROMPT_TOKENS = 75
TEXT_TOKENS = 60
LLM_STEPS = 100


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(device, work, rows):
    """Seconds for `rows` calls, after one that is not counted."""
    work()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(rows):
        work()
    synchronize(device)
    return time.perf_counter() - start


def autocast(device, precision):
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, kinds[precision]) if precision in kinds else contextlib.nullcontext()


def works(original, seconds, prompt_tokens):
    """What one row of each stage is: the call, audio seconds it makes, its units."""
    count = int(seconds * TOKENS_PER_SECOND)
    g = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, SPEECH_CODES, (count,), generator=g).tolist()
    prompt, spoken = made_up_prompt(prompt_tokens, 2), made_up_prompt(LLM_PROMPT_TOKENS, 3)["token"].tolist()
    mel = (-6 + torch.randn(1, 80, 2 * count, generator=g)).to(original.device)
    text = original.ids(ENDOFPROMPT)[:1] + list(range(1, TEXT_TOKENS))
    return {
        "llm": (lambda: run_llm(original, text, [], spoken, count=LLM_STEPS), LLM_STEPS / TOKENS_PER_SECOND, LLM_STEPS),
        "flow": (lambda: run_flow(original, tokens, prompt, False, True), count / TOKENS_PER_SECOND,
                 count / TOKENS_PER_SECOND),
        "hift": (lambda: original.hift.inference(speech_feat=mel, finalize=True), count / TOKENS_PER_SECOND,
                 count / TOKENS_PER_SECOND),
    }


def bench(args):
    with contextlib.redirect_stdout(sys.stderr): # what it says while loading
        original = Original(args)
    name = torch.cuda.get_device_name() if original.device.type == "cuda" else "cpu"
    for stage, (work, audio_s, units) in works(original, args.seconds, args.prompt).items():
        if stage not in args.stages.split(","):
            continue
        precision = "f32" if stage == "hift" else args.precision
        for rows in args.rows:
            with autocast(original.device, precision):
                spent = timed(original.device, work, rows)
            print(json.dumps({"bench": stage, "implementation": "upstream", "torch": torch.__version__, "device": name,
                              "precision": precision, "rows": rows, "audio_per_s": rows * audio_s / spent,
                              "units": rows * units, "seconds": spent}), flush=True)


def rows_list(text):
    rows = [int(word) for word in text.split(",")]
    if not all(1 <= n <= 256 for n in rows):
        raise argparse.ArgumentTypeError(f"expected numbers of 1..256 with commas, found {text}")
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cosyvoice", required=True, help="clone of FunAudioLLM/CosyVoice")
    p.add_argument("-m", "--model", required=True, help="model directory with .pt files")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    p.add_argument("--precision", default="f32", choices=("f32", "bf16", "fp16"))
    p.add_argument("--rows", default=[1, 16, 64], type=rows_list)
    p.add_argument("--seconds", default=5.0, type=float, help="audio of a row for flow and hift")
    p.add_argument("--prompt", default=50, type=int, help="speech tokens of the voice before a row of flow")
    p.add_argument("--stages", default="llm,flow,hift")
    p.add_argument("--llm", help="weights of the LLM, when not llm.rl.pt or llm.pt")
    args = p.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    with torch.inference_mode():
        bench(args)


if __name__ == "__main__":
    main()
