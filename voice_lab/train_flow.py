"""Trains Flow: conditional flow matching from codes to mel, both masks, with and without a prompt and a condition.

    python3 -m voice_lab.train_flow OUT --minutes CORE_MINUTES
"""
import argparse

import numpy as np
import torch

from . import flow, make_data, mel, tokens, vocoder
from .train import Loop

CODES_PER_STEP, UNCONDITIONAL = 600, 0.15
CROPS = (50, 75, 100, 150)                 # codes
SIGMA_MIN = 1e-6


def speaker(name):
    """The 192 values that stand for a voice: fixed, nothing was measured."""
    rng = np.random.default_rng(sum(ord(c) << (8 * i) for i, c in enumerate(name)))
    return rng.standard_normal(192).astype(np.float32)


def load(folder, codes):
    """Utterances (codes [N], mel [2 N, 80], voice's embedding)."""
    out = []
    for arrays in make_data.load(folder):
        encoded = [codes.encode(m) for m in make_data.split(arrays, "mel")]
        for voice in vocoder.VOICES:
            embedding = speaker(voice.name)
            out += [(c, mel.log_mel(a / 32767.0), embedding)
                    for c, a in zip(encoded, make_data.split(arrays, voice.name + "_audio"))]
    return out


def batch_of(by_voice, rng):
    """Runs of utterances of one voice, cut to a common length: a prompt is what comes before."""
    length, codes, mels, who, given = CROPS[rng.integers(len(CROPS))], [], [], [], []
    for _ in range(CODES_PER_STEP // length):
        data = by_voice[rng.integers(len(by_voice))]
        parts, have = [], 0
        while have < length + 3:
            parts.append(data[rng.integers(len(data))])
            have += len(parts[-1][0])
        c, m = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        first = rng.integers(have - length - 2) if rng.random() < 0.3 else 0
        codes.append(c[first:first + length + 3])
        mels.append(m[2 * first:2 * (first + length)])
        who.append(parts[0][2])
        given.append(0 if rng.random() < 0.25 else int(rng.integers(10, min(50, length - 20))))
    return (torch.from_numpy(np.stack(codes)).long(), torch.from_numpy(np.stack(mels)), torch.from_numpy(np.stack(who)),
            given)


def loss_of(model, batch, rng, generator):
    codes, mels, who, given = batch
    n, ending = codes.shape[1] - 3, rng.random() < 0.3
    with torch.autocast("cpu", torch.bfloat16):
        mu, spk = model.front(codes[:, :n], who, None if ending else codes[:, n:])
        mu, spk = mu.float(), spk.float()
        cond, weight = torch.zeros_like(mels), torch.ones(mels.shape[:2])
        for i, g in enumerate(given):
            cond[i, :2 * g] = mels[i, :2 * g]
            weight[i, :2 * g] = 0.1
        keep = (torch.rand(len(codes), generator=generator) >= UNCONDITIONAL).float()
        t = 1 - torch.cos(torch.rand(len(codes), generator=generator) * 0.5 * torch.pi)
        z = torch.randn(mels.shape, generator=generator)
        at = t[:, None, None]
        x = (1 - (1 - SIGMA_MIN) * at) * z + at * mels
        mask = flow.mask_of(mels.shape[1], rng.random() < 0.5)
        v = model.velocity(x, cond * keep[:, None, None], mu * keep[:, None, None], spk * keep[:, None], t, mask)
    square = ((v.float() - (mels - (1 - SIGMA_MIN) * z)) ** 2).mean(-1)
    conditional = keep[:, None] * weight
    loss = (square * weight).sum() / weight.sum()
    close = ((mu - mels).abs().mean(-1) * conditional).sum() / conditional.sum().clamp_min(1)
    return loss + 0.1 * close, {"loss": loss.detach(), "conditional": ((square * conditional).sum() / conditional.sum().clamp_min(1)).detach(),
                                "mu": close.detach()}


def start(model, data, codes):
    """Embedding rows from the mean mel of each cluster, the output's bias from the mean mel."""
    total, count = np.zeros((len(codes.variants), 80)), np.zeros(len(codes.variants))
    for c, m, _ in data[:1500]:
        np.add.at(total, codes.cluster_of[c], m.reshape(-1, 2, 80).mean(1))
        np.add.at(count, codes.cluster_of[c], 1)
    mean = total.sum(0) / count.sum()
    centre = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], mean)
    with torch.no_grad():
        model.input_embedding.weight.copy_(torch.from_numpy(centre[codes.cluster_of]))
        model.decoder.estimator.proj_out.bias.copy_(torch.from_numpy(mean))
        model.pre_lookahead_layer.conv2.weight.mul_(0.1)
        for block in model.decoder.estimator.transformer_blocks:
            block.attn_norm.linear.weight.mul_(0.1)
            block.attn_norm.linear.bias.zero_()
            for gate in (2, 5):
                block.attn_norm.linear.bias[gate * 256:(gate + 1) * 256] = 0.5


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out")
    ap.add_argument("--minutes", type=float, required=True)
    ap.add_argument("--rendered", help="default: OUT/data/rendered")
    ap.add_argument("--seed", type=int, default=1)
    a = ap.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(a.seed)
    codes = tokens.Codes.load(a.out + "/codes.npz")
    data = load(a.rendered or a.out + "/data/rendered", codes)
    by_voice = [[u for u in data if (u[2] == speaker(v.name)).all()] for v in vocoder.VOICES]
    model = flow.Flow(codes.count)
    start(model, data, codes)
    print(f"flow: {len(data)} utterances, {sum(p.numel() for p in model.parameters())} parameters", flush=True)
    loop = Loop(a.out, "flow", model, a.minutes, 1e-3, a.seed, betas=(0.9, 0.98))
    rng = np.random.default_rng(a.seed * 1000003 + loop.step)
    model.train()
    while loop.going():
        loss, figures = loss_of(model, batch_of(by_voice, rng), rng, loop.generator)
        loop.update(loss, figures)
    loop.finish()


if __name__ == "__main__":
    main()
