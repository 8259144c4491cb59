"""Writes the model directory: fp16 tensors under upstream's names, tokenizer files, configuration, voices.

    python3 -m voice_lab.export OUT MODEL_DIR      reads OUT/{hift,f0,flow,llm}.state and OUT/codes.npz
"""
import argparse
import json
import os

import numpy as np
import torch

from . import flite, flow, hift, llm, make_data, mel, sentences, tensors, tokens, vocoder
from .tokenizer import PREFIX, Tokenizer
from .train_flow import speaker
from .train_llm import PROMPTS


def state_of(path):
    return torch.load(path, weights_only=True)["model"]


def models(out, words):
    """(tokenizer, codes, hift, flow, llm) with the trained values, for inference."""
    tokenizer, codes = Tokenizer.of_words(sentences.word_list(words)), tokens.Codes.load(out + "/codes.npz")
    h, f, m = hift.Hift(), flow.Flow(codes.count), llm.Llm(codes.count, tokenizer.rows)
    h.load_state_dict(state_of(out + "/hift.state"))
    if os.path.exists(out + "/f0.state"):
        h.f0_predictor.load_state_dict(state_of(out + "/f0.state"))
    for model, name in ((f, "flow"), (m, "llm")):
        if os.path.exists(f"{out}/{name}.state"):
            model.load_state_dict(state_of(f"{out}/{name}.state"))
    return [tokenizer, codes] + [x.eval() for x in (h, f, m)]


def voices(codes, noise_seed=7):
    """{name: (tensors, metadata)} of the voice files: the prompt sentence in each voice."""
    source, out = flite.Speaker(), {}
    for voice in vocoder.VOICES:
        first = make_data.speak(source, PROMPTS[voice.name])
        recorded = make_data.recorded(source, PROMPTS[voice.name], voice, *first)
        audio, _ = vocoder.synthesise(*recorded, voice, np.random.default_rng(noise_seed))
        out[voice.name] = ({"prompt_token": codes.encode(vocoder.token_features(*first)),
                            "prompt_feat": mel.log_mel(audio), "embedding": speaker(voice.name)},
                           {"prompt_text": PREFIX + PROMPTS[voice.name]})
    return out


def _arrays(state, kind=np.float16):
    out = {}
    for name, t in state.items():
        a = t.detach().double().numpy()
        if name.endswith("alpha"):
            a = np.maximum(a, 0.1)                           # as the training's snake has it
        a = a.astype(np.float32 if name.endswith("inv_freq") else kind)
        if not np.isfinite(a).all():
            raise RuntimeError(f"{name}: not finite in {np.dtype(kind).name}")
        out[name] = a
    return out


def write(out, folder, words):
    tokenizer, codes, h, f, m = models(out, words)
    blank = folder + "/CosyVoice-BlankEN"
    os.makedirs(folder + "/voices", exist_ok=True)
    tokenizer.save(blank)
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", **m.shape,
              "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": llm.THETA, "tie_word_embeddings": True,
              "attention_dropout": 0.0, "use_sliding_window": False, "torch_dtype": "bfloat16"}
    with open(blank + "/config.json", "w", encoding="utf-8") as text:
        json.dump(config, text, indent=1)
    with open(folder + "/cosyvoice3.yaml", "w", encoding="utf-8") as text:
        text.write("# made by voice_lab: shapes come from the tensors\nsample_rate: 24000\n")
    tensors.write(folder + "/hift.safetensors", {tensors.upstream_name(k): v for k, v in _arrays(h.state_dict()).items()})
    tensors.write(folder + "/flow.safetensors", _arrays(f.state_dict()))
    tensors.write(folder + "/llm.safetensors", _arrays(m.state_dict()))
    for name, (values, meta) in voices(codes).items():
        tensors.write(f"{folder}/voices/{name}.safetensors", values, meta)
    total = sum(os.path.getsize(os.path.join(path, name)) for path, _, names in os.walk(folder) for name in names)
    print(f"{folder}: {total / 1e6:.1f} MB")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out")
    ap.add_argument("folder")
    ap.add_argument("--words", default=os.path.join(os.path.dirname(__file__), "words.txt"))
    a = ap.parse_args()
    write(a.out, a.folder, a.words)


if __name__ == "__main__":
    main()
