#!/usr/bin/env python3
"""Writes case files for `cosyfarm parity` from the original PyTorch implementation and a model directory of yours.

    capture_reference.py --cosyvoice CHECKOUT --model DIR -o CASES [options]
    cosyfarm parity -m DIR CASES/*.safetensors

CHECKOUT is a clone of FunAudioLLM/CosyVoice whose requirements are installed in the Python that runs this script; DIR holds
llm.pt (or llm.rl.pt, which cosyfarm prefers), flow.pt, hift.pt, CosyVoice-BlankEN/ and, for released weights,
cosyvoice3.yaml. Everything runs in f32 with TF32 off. Names, layouts and bounds of the tensors: docs/model/cases.md.

What the cases say:
  llm-*     teacher-forced logits; the forced tokens were sampled by the original sampler under --seed
  flow-*    offline, and the calls of a stream, with velocities of the first and the last step and x after each step
  hift-*    final and non-final vocoder calls
  stream-*  emissions of a stream in the original's schedule, from its first request in a fresh process
  speed-*   the mel of two speeds

The vocoder's source needs one correction. Its phase is a running f32 sum that is rounded otherwise on the CPU than on
CUDA, and after a second the two are different signals. cosyfarm follows CUDA, so this script evaluates that one function in
CUDA's order on either device.

Nothing here is part of `make check`, and nothing of the original is copied: it is imported from CHECKOUT.
"""
import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import types

import numpy as np
import torch

ENDOFPROMPT = "<|endofprompt|>"
PREFIX = "You are a helpful assistant."
SENTENCES = [
    "The kettle began to sing while rain went over the roofs.",
    "窗外的雨停了，街灯一盏一盏亮起来。",
]
PROMPT_TEXT = "Somebody had left a lamp on in the workshop."
SPEECH_CODES = 6561
SOURCE_TABLE_START = 5_052_970  # draws of the seed-0 generator before the noise table, in the order of the released yaml
SOURCE_TABLE_SAMPLES = 300 * 24000


# ---- the original implementation -------------------------------------------------------------------------------------
def import_original(checkout):
    """Puts CHECKOUT on the path. The flow's base class lives in a submodule that is easily forgotten: what the flow needs
    of it is a constructor that keeps its arguments."""
    sys.path.insert(0, os.path.join(checkout, "third_party", "Matcha-TTS"))
    sys.path.insert(0, checkout)
    if importlib.util.find_spec("matcha") is None:
        class Base(torch.nn.Module):
            def __init__(self, n_feats, cfm_params, n_spks=1, spk_emb_dim=128):
                super().__init__()
                self.n_feats, self.n_spks, self.spk_emb_dim = n_feats, n_spks, spk_emb_dim
                self.sigma_min = getattr(cfm_params, "sigma_min", 1e-4)

        names = ["matcha", "matcha.models", "matcha.models.components", "matcha.models.components.flow_matching"]
        for name in names:
            sys.modules[name] = types.ModuleType(name)
        sys.modules[names[-1]].BASECFM = Base
        sys.modules["matcha"].is_stand_in = True
        print("note: third_party/Matcha-TTS is absent; its base class is replaced by one that keeps its arguments")


def backbone_without_weights():
    """llm.pt holds every parameter of the backbone, so it is built from its configuration alone."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    Qwen2ForCausalLM.from_pretrained = classmethod(lambda cls, path, **_: cls(Qwen2Config.from_pretrained(path)))


def load_state(path):
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {k.replace("generator.", ""): v for k, v in state.items() if torch.is_tensor(v)}


def modules_from_yaml(text, blank):
    """llm, flow and hift of a released cosyvoice3.yaml. Training, data set and GAN sections are left out: they import
    packages that inference does not need. The order of what is built, and with it every noise table, stays."""
    from hyperpyyaml import load_hyperpyyaml

    blocks = re.split(r"(?m)^(?=[A-Za-z_])", text)
    wanted = ("__set_seed", "sample_rate", "llm", "flow", "hift:", "spk_embed_dim", "qwen_pretrain_path", "token_frame_rate",
              "token_mel_ratio", "chunk_size", "num_decoding_left_chunks")
    kept = "".join(b for b in blocks if b.startswith(wanted))
    return load_hyperpyyaml(kept, overrides={"qwen_pretrain_path": blank})


def modules_from_shapes(states, blank):
    """The released configuration with the dimensions of these tensors: scaled-down models have no yaml."""
    from omegaconf import DictConfig
    from cosyvoice.flow.DiT.dit import DiT
    from cosyvoice.flow.flow import CausalMaskedDiffWithDiT
    from cosyvoice.flow.flow_matching import CausalConditionalCFM
    from cosyvoice.hifigan.f0_predictor import CausalConvRNNF0Predictor
    from cosyvoice.hifigan.generator import CausalHiFTGenerator
    from cosyvoice.llm.llm import CosyVoice3LM, Qwen2Encoder
    from cosyvoice.transformer.upsample_encoder import PreLookaheadLayer
    from cosyvoice.utils.common import ras_sampling

    hidden = states["llm"]["llm_decoder.weight"].shape[1]
    llm = CosyVoice3LM(hidden, hidden, SPEECH_CODES, Qwen2Encoder(blank),
                       lambda *a, **k: ras_sampling(*a, top_p=0.8, top_k=25, win_size=10, tau_r=0.1, **k))
    flow_state, prefix = states["flow"], "decoder.estimator.transformer_blocks."
    dim = flow_state["decoder.estimator.proj_out.weight"].shape[1]
    depth = 1 + max(int(k[len(prefix):].split(".")[0]) for k in flow_state if k.startswith(prefix))
    estimator = DiT(dim=dim, depth=depth, heads=dim // 64, dim_head=64, ff_mult=2, mel_dim=80, mu_dim=80, spk_dim=80,
                    out_channels=80, static_chunk_size=50, num_decoding_left_chunks=-1)
    solver = CausalConditionalCFM(240, DictConfig({"sigma_min": 1e-06, "solver": "euler", "t_scheduler": "cosine",
                                                   "training_cfg_rate": 0.2, "inference_cfg_rate": 0.7,
                                                   "reg_loss_type": "l1"}), 1, 80, estimator)
    look = flow_state["pre_lookahead_layer.conv1.weight"].shape[0]
    flow = CausalMaskedDiffWithDiT(80, 80, 192, "mel", SPEECH_CODES, 25, True, 2, 3, PreLookaheadLayer(80, look, 3), solver)
    hift_state = states["hift"]
    f0_channels = hift_state["f0_predictor.classifier.weight"].shape[1]
    base = hift_state["conv_pre.bias"].shape[0]
    three = [[1, 3, 5]] * 3
    hift = CausalHiFTGenerator(in_channels=80, base_channels=base, nb_harmonics=8, sampling_rate=24000, nsf_alpha=0.1,
                               nsf_sigma=0.003, nsf_voiced_threshold=10, upsample_rates=[8, 5, 3],
                               upsample_kernel_sizes=[16, 11, 7], istft_params={"n_fft": 16, "hop_len": 4},
                               resblock_kernel_sizes=[3, 7, 11], resblock_dilation_sizes=three,
                               source_resblock_kernel_sizes=[7, 7, 11], source_resblock_dilation_sizes=three,
                               lrelu_slope=0.1, audio_limit=0.99, conv_pre_look_right=4,
                               f0_predictor=CausalConvRNNF0Predictor(1, 80, f0_channels))
    return {"llm": llm, "flow": flow, "hift": hift}


def phase_in_cuda_order(f0_harmonics, scale):
    """What the sine generator's inner function computes on CUDA, every product rounded to f32 on its own, the sum serial.
    f0_harmonics: [1, samples, 9], constant over each frame of `scale` samples."""
    f = np.float32
    p = f0_harmonics[0, ::scale].cpu().numpy().astype(f)
    r = np.fmod(p * (f(1) / f(24000)), f(1))
    total = np.zeros(p.shape[1], f)
    sums = np.empty_like(p)
    for j in range(len(p)):
        total = total + r[j]
        sums[j] = total
    phase = ((sums * f(2)) * f(np.pi)) * f(scale)
    sines = np.sin(phase.astype(np.float64)).astype(f)
    return torch.from_numpy(np.repeat(sines, scale, 0)[None]).to(f0_harmonics.device)


def source_table():
    """The vocoder's noise: uniform draws of the seed-0 generator from a fixed position on."""
    generator = torch.Generator().manual_seed(0)
    torch.rand(SOURCE_TABLE_START, generator=generator)
    return torch.rand(1, SOURCE_TABLE_SAMPLES, 9, generator=generator)


class Original:
    """The three modules with their weights, and the tokenizer."""

    def __init__(self, args):
        import_original(args.cosyvoice)
        backbone_without_weights()
        from cosyvoice.tokenizer.tokenizer import get_qwen_tokenizer

        self.device = torch.device(args.device)
        blank = os.path.join(args.model, "CosyVoice-BlankEN")
        rl = os.path.join(args.model, "llm.rl.pt")
        llm_path = args.llm or (rl if os.path.exists(rl) else os.path.join(args.model, "llm.pt"))
        print(f"llm weights: {llm_path}")
        states = {"llm": load_state(llm_path)}
        for stage in ("flow", "hift"):
            states[stage] = load_state(os.path.join(args.model, stage + ".pt"))
        yaml_path = os.path.join(args.model, "cosyvoice3.yaml")
        text = open(yaml_path, encoding="utf-8").read() if os.path.exists(yaml_path) else ""
        self.yaml_text = text if re.search(r"(?m)^flow:", text) else None
        torch.manual_seed(1986)
        modules = modules_from_yaml(self.yaml_text, blank) if self.yaml_text else modules_from_shapes(states, blank)
        self.llm, self.flow, self.hift = (modules[k] for k in ("llm", "flow", "hift"))
        for stage in ("llm", "flow", "hift"):
            getattr(self, stage).load_state_dict(states[stage], strict=True)
            getattr(self, stage).to(self.device).eval()
        self.use_known_source()
        self.tokenizer = get_qwen_tokenizer(token_path=blank, skip_special_tokens=True, version="cosyvoice3")

    def use_known_source(self):
        generator = self.hift.m_source.l_sin_gen
        table = source_table()
        if self.yaml_text and not torch.equal(generator.sine_waves[:, :4800], table[:, :4800]):
            sys.exit("the noise table that this yaml leads to is not the released one; was the order of its sections changed?")
        generator.sine_waves = table
        scale = int(generator.upsample_scale)
        generator._f02sine = lambda f0: phase_in_cuda_order(f0, scale)

    def ids(self, text):
        return self.tokenizer.encode(text, allowed_special="all")


# ---- prompts -----------------------------------------------------------------------------------------------------------
def made_up_prompt(tokens, seed):
    """Random tokens, a mel that wanders like one, a random speaker: enough for parity, nothing to listen to."""
    g = torch.Generator().manual_seed(seed)
    level = torch.cumsum(torch.randn(2 * tokens, 1, generator=g), 0) * 0.3
    feat = (-6 + level - level.mean() + torch.randn(2 * tokens, 80, generator=g)).clamp(-11.5, 2)
    return {"token": torch.randint(0, SPEECH_CODES, (tokens,), generator=g), "feat": feat,
            "embedding": torch.randn(192, generator=g), "text": PREFIX + ENDOFPROMPT + PROMPT_TEXT}


def prompt_from_wav(original, args):
    """Speech tokens, mel and speaker of a recording, by the original's own front end."""
    from cosyvoice.cli.frontend import CosyVoiceFrontEnd
    from hyperpyyaml import load_hyperpyyaml

    if not original.yaml_text:
        sys.exit("--prompt-wav needs the released cosyvoice3.yaml in the model directory")
    if not args.prompt_text:
        sys.exit("--prompt-wav needs --prompt-text: what is said in it")
    if getattr(sys.modules.get("matcha"), "is_stand_in", False):
        sys.exit("--prompt-wav needs the original's mel: third_party/Matcha-TTS (git submodule update --init)")
    blocks = re.split(r"(?m)^(?=[A-Za-z_])", original.yaml_text)
    extractor = load_hyperpyyaml("".join(b for b in blocks if b.startswith(("sample_rate", "feat_extractor"))))
    front = CosyVoiceFrontEnd(lambda: original.tokenizer, extractor["feat_extractor"],
                              os.path.join(args.model, "campplus.onnx"),
                              os.path.join(args.model, "speech_tokenizer_v3.onnx"))
    text = args.prompt_text if ENDOFPROMPT in args.prompt_text else PREFIX + ENDOFPROMPT + args.prompt_text
    made = front.frontend_zero_shot("", text, args.prompt_wav, 24000, "")
    return {"token": made["flow_prompt_speech_token"][0].cpu(), "feat": made["prompt_speech_feat"][0].float().cpu(),
            "embedding": made["flow_embedding"][0].float().cpu(), "text": text}


def prompt_from_voice(path, name):
    """A saved voice: cosyfarm's .safetensors, or one entry of the original's spk2info.pt."""
    if path.endswith(".safetensors"):
        from safetensors import safe_open
        with safe_open(path, "pt") as f:
            v = {k: f.get_tensor(k) for k in f.keys()}
            text = (f.metadata() or {}).get("prompt_text")
        return {"token": v["prompt_token"].long(), "feat": v["prompt_feat"], "embedding": v["embedding"].flatten(),
                "text": text, "text_ids": v.get("prompt_text_id", v.get("prompt_text"))}
    voices = torch.load(path, map_location="cpu", weights_only=True)
    name = name or next(iter(voices))
    if "flow_prompt_speech_token" not in voices[name]:
        sys.exit(f"{path}: {name} has no prompt, only a speaker vector; name another with --voice-name")
    v = voices[name]
    return {"token": v["flow_prompt_speech_token"][0].long(), "feat": v["prompt_speech_feat"][0].float(),
            "embedding": v["flow_embedding"].flatten().float(), "text": None, "text_ids": v["prompt_text"][0]}


# ---- stages ------------------------------------------------------------------------------------------------------------
def llm_input(original, text_ids, prompt_ids, speech):
    """The input sequence as the original's inference() makes it. That insists on the released id of <|endofprompt|>; for the
    small vocabulary of scaled-down models the same rows are put together here."""
    llm, device = original.llm, original.device
    row = lambda ids: torch.tensor([list(ids)], dtype=torch.int32, device=device)
    length = lambda ids: torch.tensor([len(ids)], dtype=torch.int32, device=device)
    if 151646 in list(prompt_ids) + list(text_ids):
        seen = []
        llm.inference_wrapper = lambda x, *_: seen.append(x) or iter(())
        list(llm.inference(row(text_ids), length(text_ids), row(prompt_ids), length(prompt_ids), row(speech), length(speech),
                           None))
        del llm.inference_wrapper
        return seen[0]
    table = llm.speech_embedding.weight
    parts = [table[llm.sos][None, None], llm.llm.model.model.embed_tokens(row(list(prompt_ids) + list(text_ids))),
             table[llm.task_id][None, None], llm.speech_embedding(row(speech))]
    return torch.cat(parts, 1)


def run_llm(original, text_ids, prompt_ids, speech, forced=None, count=0):
    """The original's step by step decoding. forced None: samples `count` tokens (never a stop) and returns them."""
    llm, device, table = original.llm, original.device, original.llm.speech_embedding.weight
    x = lm_input = llm_input(original, text_ids, prompt_ids, speech)
    logits, hidden, tokens, cache = [], [], [], None
    for k in range(1 + (len(forced) if forced is not None else count)):
        mask = torch.tril(torch.ones((1, x.shape[1], x.shape[1]), device=device)).to(torch.bool)
        y, cache = llm.llm.forward_one_step(x, masks=mask, cache=cache)
        logits.append(llm.llm_decoder(y[:, -1])[0])
        hidden.append(y[0, -1])
        if forced is None:
            scores = logits[-1].log_softmax(-1)
            scores[SPEECH_CODES:] = -float("inf")
            tokens.append(int(llm.sampling(scores, tokens, 25)))
        elif k == len(forced):
            break
        else:
            tokens.append(int(forced[k]))
        x = table[tokens[-1]].reshape(1, 1, -1)
    return lm_input[0], torch.stack(logits), torch.stack(hidden), tokens[:count] if forced is None else tokens


def llm_case(original, text, prompt_ids, speech, forced):
    lm_input, logits, hidden, _ = run_llm(original, original.ids(text), prompt_ids, speech, forced)
    return {"text": original.ids(text), "prompt_text": list(prompt_ids), "prompt_speech_token": speech, "forced": forced,
            "lm_input": lm_input, "logits": logits, "hidden": hidden}


class Watch:
    """Collects a module's inputs and outputs, call by call."""

    def __init__(self, module):
        self.calls = []
        self.handle = module.register_forward_hook(self.keep, with_kwargs=True)

    def keep(self, _module, args, kwargs, out):
        clone = lambda v: v.detach().clone() if torch.is_tensor(v) else v
        self.calls.append(([clone(a) for a in args], clone(out)))

    def __enter__(self):
        return self.calls

    def __exit__(self, *_):
        self.handle.remove()


def run_flow(original, tokens, prompt, streaming, finalize):
    row = lambda v, kind=torch.int32: torch.as_tensor(v, dtype=kind, device=original.device)[None]
    length = lambda v: torch.tensor([len(v)], dtype=torch.int32, device=original.device)
    mel, _ = original.flow.inference(token=row(tokens), token_len=length(tokens), prompt_token=row(prompt["token"]),
                                     prompt_token_len=length(prompt["token"]),
                                     prompt_feat=row(prompt["feat"], torch.float32), prompt_feat_len=length(prompt["feat"]),
                                     embedding=row(prompt["embedding"], torch.float32), streaming=streaming,
                                     finalize=finalize)
    return mel[0]


def flow_case(original, tokens, prompt, streaming, finalize):
    with Watch(original.flow.decoder.estimator) as calls:
        mel = run_flow(original, tokens, prompt, streaming, finalize)
    x_in, _mask, mu, _t, spk = calls[0][0][:5]
    return {"token": tokens, "prompt_token": prompt["token"], "prompt_feat": prompt["feat"], "embedding": prompt["embedding"],
            "mu": mu[0], "spk": spk[0], "t": torch.stack([c[0][3][0] for c in calls]), "v1_cond": calls[0][1][0],
            "v1_uncond": calls[0][1][1], "v10_cond": calls[-1][1][0], "v10_uncond": calls[-1][1][1],
            "x_steps": torch.stack([c[0][0][0] for c in calls[1:]]), "mel": mel}


def hift_case(original, mel, finalize):
    hift = original.hift
    with Watch(hift.f0_predictor) as f0, Watch(hift.conv_pre) as pre, Watch(hift.conv_post) as post:
        audio, source = hift.inference(speech_feat=mel[None], finalize=finalize)
    return {"mel": mel, "f0": f0[0][1][0].float(), "source": source.flatten(), "conv_pre": pre[0][1][0],
            "conv_post": post[0][1][0], "audio": audio.flatten()}


def stream_calls(count, prompt_tokens, hop=25, hop_max=100, ahead=3):
    """[offset, tokens] of the non-final calls when all tokens are there, by the original's rule in a fresh process."""
    pad, offset, calls = -prompt_tokens % hop, 0, []
    while True:
        this = hop + (pad if offset == 0 else 0)
        if count - offset < this + ahead:
            return calls
        calls.append([offset, this])
        offset, hop = offset + this, min(hop_max, 2 * hop)


def stream_case(original, tokens, prompt):
    """The original's token2wav, call by call; it keeps the mel so far and what of the audio was given out."""
    from cosyvoice.cli.model import CosyVoice3Model

    model = CosyVoice3Model(original.llm, original.flow, original.hift)
    model.device, model.hift_cache_dict["case"] = original.device, None
    calls = stream_calls(len(tokens), len(prompt["token"]))
    case = {"token": tokens, "prompt_token": prompt["token"], "prompt_feat": prompt["feat"], "embedding": prompt["embedding"]}
    offset, frames = 0, 0
    for k, this in enumerate([c[1] for c in calls] + [0]):
        last = k == len(calls)
        given = tokens if last else tokens[:offset + this + 3]
        audio = model.token2wav(torch.tensor([given]), torch.as_tensor(prompt["token"])[None], prompt["feat"][None],
                                prompt["embedding"][None], offset, "case", stream=not last, finalize=last)
        mel = model.hift_cache_dict["case"]["mel"][0]
        case[f"mel_{k}"], case[f"audio_{k}"] = mel[:, frames:], audio.flatten()
        offset, frames = offset + this, mel.shape[1]
    return case, calls


def speed_case(mel, speed):
    resampled = torch.nn.functional.interpolate(mel[None], size=int(mel.shape[1] / speed), mode="linear")
    return {"mel": mel, "resampled": resampled[0]}


# ---- files -------------------------------------------------------------------------------------------------------------
INTEGERS = ("text", "prompt_text", "prompt_speech_token", "forced", "token", "prompt_token")


class Cases:
    def __init__(self, args):
        commit = subprocess.run(["git", "-C", args.cosyvoice, "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True)
        self.folder = args.output
        self.common = {"model": args.model_name or os.path.basename(os.path.abspath(args.model)),
                       "upstream": f"FunAudioLLM/CosyVoice@{commit.stdout.strip() or 'unknown'} torch {torch.__version__} "
                                   f"{args.device} f32", "seed": str(args.seed)}
        os.makedirs(self.folder, exist_ok=True)

    def write(self, name, tensors, **meta):
        from safetensors.torch import save_file

        stage = name.split("-")[0]
        ready = {k: torch.as_tensor(v, dtype=torch.int32 if k in INTEGERS else torch.float32).cpu().contiguous().clone()
                 for k, v in tensors.items()}
        path = os.path.join(self.folder, name + ".safetensors")
        save_file(ready, path, metadata={"stage": stage, **self.common, **{k: str(v) for k, v in meta.items()}})
        print(f"{path}: " + ", ".join(f"{k} {list(v.shape)}" for k, v in ready.items()), flush=True)


def capture(original, cases, args):
    if args.prompt_wav:
        prompts = [prompt_from_wav(original, args)]
    elif args.voice:
        prompts = [prompt_from_voice(args.voice, args.voice_name)]
    else:
        prompts = [made_up_prompt(50, args.seed), made_up_prompt(87, args.seed + 1)]
    stages = args.stages.split(",")
    mel = None
    for i, text in enumerate(args.text or SENTENCES):
        prompt = prompts[i % len(prompts)]
        prompt_ids = original.ids(prompt["text"]) if prompt["text"] else prompt["text_ids"].tolist()
        speech = prompt["token"].tolist()
        torch.manual_seed(args.seed + i)
        tokens = run_llm(original, original.ids(text), prompt_ids, speech, count=args.tokens)[3]
        label = f"{i}"
        if "llm" in stages:
            forced = tokens[:args.logits]
            said = {"text_string": text, "prompt_text_string": prompt["text"] or ""}
            cases.write(f"llm-zero-shot-{label}", llm_case(original, text, prompt_ids, speech, forced), **said)
            alone = PREFIX + ENDOFPROMPT + text
            cases.write(f"llm-cross-lingual-{label}", llm_case(original, alone, [], [], forced[:5]), text_string=alone,
                        prompt_text_string="")
        few = tokens[:args.flow_tokens]
        if "flow" in stages:
            cases.write(f"flow-offline-{label}", flow_case(original, few, prompt, False, True), streaming=0, finalize=1)
            pad = -len(speech) % 25
            if len(tokens) >= 28 + pad:
                cases.write(f"flow-stream-{label}", flow_case(original, tokens[:28 + pad], prompt, True, False), streaming=1,
                            finalize=0)
        mel = run_flow(original, few, prompt, False, True)
        if "hift" in stages:
            cases.write(f"hift-final-{label}", hift_case(original, mel, True), finalize=1)
            if mel.shape[1] >= 9:
                cases.write(f"hift-not-final-{label}", hift_case(original, mel, False), finalize=0)
        if "stream" in stages:
            tensors, calls = stream_case(original, tokens, prompt)
            cases.write(f"stream-{label}", tensors, calls=json.dumps(calls))
    for speed in (0.75, 1.3) if "speed" in stages else ():
        cases.write(f"speed-{speed}", speed_case(mel, speed), speed=speed)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cosyvoice", required=True, help="clone of FunAudioLLM/CosyVoice")
    p.add_argument("--model", required=True, help="model directory with .pt files")
    p.add_argument("-o", "--output", required=True, help="folder for the case files")
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    p.add_argument("--seed", type=int, default=1986, help="of the sampler and of made-up prompts")
    p.add_argument("--llm", help="weights of the LLM, when not llm.rl.pt or llm.pt")
    p.add_argument("--model-name", help="metadata `model`; \"synthetic SIZE seed N\" selects the bounds of synthetic models")
    p.add_argument("--text", action="append", help="sentence to speak; may be repeated")
    p.add_argument("--prompt-wav", help="recording of the voice, at most 30 s")
    p.add_argument("--prompt-text", help="what is said in it")
    p.add_argument("--voice", help="saved voice instead: .safetensors, or spk2info.pt")
    p.add_argument("--voice-name", help="entry of spk2info.pt (default: the first)")
    p.add_argument("--stages", default="llm,flow,hift,stream,speed")
    p.add_argument("--tokens", type=int, default=120, help="speech tokens sampled a sentence (25 a second)")
    p.add_argument("--logits", type=int, default=30, help="of them, decoded again with logits kept")
    p.add_argument("--flow-tokens", type=int, default=40, help="of them, rendered by the offline flow case")
    args = p.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.set_float32_matmul_precision("highest")
    with torch.inference_mode():
        capture(Original(args), Cases(args), args)


if __name__ == "__main__":
    main()
