"""Flow (spec flow): speech codes to mel by a diffusion transformer, with upstream's names and arithmetic."""
import math

import torch
import torch.nn.functional as F
from torch import nn

HEAD, BLOCK, STEPS, GUIDANCE = 64, 50, 10, 0.7


class Attention(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def forward(self, x, cosine, sine, mask):
        b, length, dim = x.shape

        def split(y):
            return y.view(b, length, dim // HEAD, HEAD).transpose(1, 2)

        def rotated(y):                                       # head 0 alone, adjacent pairs
            even, odd = y[..., 0:HEAD:2], y[..., 1:HEAD:2]
            first = torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], -1).flatten(-2)
            return torch.cat([first, y[..., HEAD:]], -1)

        q, k, v = split(rotated(self.to_q(x))), split(rotated(self.to_k(x))), split(self.to_v(x))
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out[0](o.transpose(1, 2).reshape(b, length, dim))


class FeedForward(nn.Module):
    def __init__(self, dim):
        super().__init__()
        first = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU("tanh"))
        self.ff = nn.Sequential(first, nn.Identity(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        return self.ff(x)


class Modulation(nn.Module):
    def __init__(self, dim, parts):
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(dim, parts * dim)

    def forward(self, time):
        return self.linear(F.silu(time))[:, None].chunk(self.parts, -1)


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.attn_norm, self.attn, self.ff = Modulation(dim, 6), Attention(dim), FeedForward(dim)

    def forward(self, x, time, cosine, sine, mask):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.attn_norm(time)
        x = x + gate1 * self.attn(_normed(x) * (1 + scale1) + shift1, cosine, sine, mask)
        return x + gate2 * self.ff(_normed(x) * (1 + scale2) + shift2)


def _normed(x):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class PositionConv(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv1d(dim, dim, 31, groups=16), nn.Mish())
        self.conv2 = nn.Sequential(nn.Conv1d(dim, dim, 31, groups=16), nn.Mish())

    def forward(self, x):
        x = x.transpose(1, 2)
        x = self.conv2(F.pad(self.conv1(F.pad(x, (30, 0))), (30, 0)))
        return x.transpose(1, 2)


class InputEmbedding(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.proj = nn.Linear(320, dim)
        self.conv_pos_embed = PositionConv(dim)

    def forward(self, x, cond, mu, spk):
        y = self.proj(torch.cat([x, cond, mu, spk[:, None].expand_as(mu)], -1))
        return y + self.conv_pos_embed(y)


class TimeEmbedding(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.time_mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t):
        w = torch.exp(torch.arange(128, dtype=t.dtype, device=t.device) * (-math.log(10000) / 127))
        a = 1000 * t[:, None] * w
        return self.time_mlp(torch.cat([torch.sin(a), torch.cos(a)], -1))


class Estimator(nn.Module):
    def __init__(self, dim, depth):
        super().__init__()
        self.time_embed, self.input_embed = TimeEmbedding(dim), InputEmbedding(dim)
        self.rotary_embed = nn.Module()
        self.rotary_embed.register_buffer("inv_freq", 10000.0 ** (-torch.arange(0, HEAD, 2, dtype=torch.float64) / HEAD))
        self.transformer_blocks = nn.ModuleList(Block(dim) for _ in range(depth))
        self.norm_out = Modulation(dim, 2)
        self.proj_out = nn.Linear(dim, 80)

    def forward(self, x, cond, mu, spk, t, mask):
        """x, cond, mu [B, T, 80], spk [B, 80], t [B], mask [B or 1, 1, T, T] bool -> velocity [B, T, 80]."""
        time = self.time_embed(t)
        angle = torch.arange(x.shape[1], dtype=torch.float64, device=x.device)[:, None] * self.rotary_embed.inv_freq.double()
        cosine, sine = torch.cos(angle).to(x.dtype), torch.sin(angle).to(x.dtype)
        h = self.input_embed(x, cond, mu, spk)
        for block in self.transformer_blocks:
            h = block(h, time, cosine, sine, mask)
        scale, shift = self.norm_out(time)
        return self.proj_out(_normed(h) * (1 + scale) + shift)


class PreLookahead(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(80, channels, 4), nn.Conv1d(channels, 80, 3)

    def forward(self, e):
        """e [B, L + 3, 80], the last three are look-ahead -> [B, L, 80]."""
        x = F.leaky_relu(self.conv1(e.transpose(1, 2)), 0.01)
        return e[:, :-3] + self.conv2(F.pad(x, (2, 0))).transpose(1, 2)


class Flow(nn.Module):
    def __init__(self, codes, dim=256, depth=4, channels=128):
        super().__init__()
        self.input_embedding = nn.Embedding(codes, 80)
        self.spk_embed_affine_layer = nn.Linear(192, 80)
        self.pre_lookahead_layer = PreLookahead(channels)
        self.decoder = nn.Module()
        self.decoder.estimator = Estimator(dim, depth)

    def front(self, codes, embedding, ahead=None):
        """codes [B, L], embedding [B, 192] -> mu [B, 2 L, 80], spk [B, 80]. ahead: [B, 3] codes, else zero vectors."""
        e = self.input_embedding(codes)
        e = F.pad(e, (0, 0, 0, 3)) if ahead is None else torch.cat([e, self.input_embedding(ahead)], 1)
        mu = self.pre_lookahead_layer(e).repeat_interleave(2, 1)
        norm = embedding.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return mu, self.spk_embed_affine_layer(embedding / norm)

    def velocity(self, *arguments):
        return self.decoder.estimator(*arguments)


def mask_of(frames, streaming, device=None):
    """[1, 1, T, T]: all, or up to the end of the query's block of 50."""
    i = torch.arange(frames, device=device)
    return (i[None] < BLOCK * (i[:, None] // BLOCK + 1))[None, None] if streaming else \
        torch.ones(1, 1, frames, frames, dtype=torch.bool, device=device)


def noise_table():
    """[80, 15000], spec flow 4; exact to 5e-7."""
    import numpy as np
    u = (np.random.RandomState(0).randint(0, 2 ** 32, 1200000, dtype=np.uint64) & 0xFFFFFF) / 2.0 ** 24
    u = u.reshape(-1, 2, 8)
    r, t = np.sqrt(-2 * np.log(1 - u[:, 0])), 2 * np.pi * u[:, 1]
    return np.stack([r * np.cos(t), r * np.sin(t)], 1).reshape(80, 15000)


def times():
    """The eleven points of the cosine grid."""
    return [1 - math.cos(0.5 * math.pi * i / STEPS) for i in range(STEPS + 1)]


def solve(model, codes, prompt_codes, prompt_feat, embedding, noise, streaming=False):
    """codes [N], prompt_codes [P], prompt_feat [2 P, 80], embedding [192], noise [80, 15000] -> mel [2 N, 80]. Final."""
    with torch.no_grad():
        kind = model.input_embedding.weight.dtype
        mu, spk = model.front(torch.cat([prompt_codes, codes])[None], embedding[None].to(kind))
        frames, given = mu.shape[1], len(prompt_feat)
        cond = torch.zeros_like(mu)
        cond[0, :given] = prompt_feat
        x = noise[:, :frames].T[None].to(kind)
        mask, grid = mask_of(frames, streaming), times()
        both = [torch.cat([a, torch.zeros_like(a)]) for a in (cond, mu, spk)]
        for a, b in zip(grid, grid[1:]):
            v = model.velocity(torch.cat([x, x]), *both, torch.full((2,), a, dtype=kind), mask)
            x = x + (b - a) * ((1 + GUIDANCE) * v[:1] - GUIDANCE * v[1:])
        return x[0, given:]
