"""The LLM (spec llm): a Qwen2 decoder over text rows and speech rows, with upstream's names.

Speech rows: codes 0..N-1, then sos, eos, task, fill and reserved rows, N + 200 in all.
"""
import torch
import torch.nn.functional as F
from torch import nn

SOS, EOS, TASK, CONTROL_ROWS = 0, 1, 2, 200           # offsets from N
HEAD = 64
THETA = 1000000.0


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        y = x if x.dtype == torch.float64 else x.float()
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6) * self.weight).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, hidden, heads, kv_heads):
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.q_proj = nn.Linear(hidden, heads * HEAD)
        self.k_proj = nn.Linear(hidden, kv_heads * HEAD)
        self.v_proj = nn.Linear(hidden, kv_heads * HEAD)
        self.o_proj = nn.Linear(heads * HEAD, hidden, bias=False)

    def forward(self, x, cosine, sine, mask, cache=None):
        """Returns the output and the attention [B, heads, L, K]. cache: [k, v], grown in place."""
        b, length, _ = x.shape

        def rotated(y, heads):
            y = y.view(b, length, heads, HEAD).transpose(1, 2)
            low, high = y[..., :HEAD // 2], y[..., HEAD // 2:]
            return torch.cat([low * cosine - high * sine, high * cosine + low * sine], -1)

        q, k = rotated(self.q_proj(x), self.heads), rotated(self.k_proj(x), self.kv_heads)
        v = self.v_proj(x).view(b, length, self.kv_heads, HEAD).transpose(1, 2)
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
            cache[:] = [k, v]
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        weights = torch.softmax((q @ k.transpose(2, 3)).float() * HEAD ** -0.5 + mask, -1)
        return self.o_proj((weights.to(v.dtype) @ v).transpose(1, 2).reshape(b, length, -1)), weights


class Mlp(nn.Module):
    def __init__(self, hidden, intermediate):
        super().__init__()
        self.gate_proj = nn.Linear(hidden, intermediate, bias=False)
        self.up_proj = nn.Linear(hidden, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, hidden, heads, kv_heads, intermediate):
        super().__init__()
        self.input_layernorm = Norm(hidden)
        self.self_attn = Attention(hidden, heads, kv_heads)
        self.post_attention_layernorm = Norm(hidden)
        self.mlp = Mlp(hidden, intermediate)

    def forward(self, x, cosine, sine, mask, cache=None):
        y, weights = self.self_attn(self.input_layernorm(x), cosine, sine, mask, cache)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), weights


class Llm(nn.Module):
    """State names: llm.model.model.{embed_tokens, layers, norm}, speech_embedding, llm_decoder."""

    def __init__(self, codes, text_rows, hidden=256, layers=4, heads=4, kv_heads=2, intermediate=1024):
        super().__init__()
        self.codes, self.hidden = codes, hidden
        self.shape = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
                      "num_key_value_heads": kv_heads, "intermediate_size": intermediate, "vocab_size": text_rows}
        inner = nn.Module()
        inner.embed_tokens = nn.Embedding(text_rows, hidden)
        inner.layers = nn.ModuleList(Layer(hidden, heads, kv_heads, intermediate) for _ in range(layers))
        inner.norm = Norm(hidden)
        self.llm = nn.Module()
        self.llm.model = nn.Module()
        self.llm.model.model = inner
        self.speech_embedding = nn.Embedding(codes + CONTROL_ROWS, hidden)
        self.llm_decoder = nn.Linear(hidden, codes + CONTROL_ROWS, bias=False)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, 0.0, 0.5 / hidden ** 0.5 if p.shape[1] != intermediate else 0.3 / intermediate ** 0.5)
        nn.init.normal_(inner.embed_tokens.weight, 0.0, 0.5)
        nn.init.normal_(self.speech_embedding.weight, 0.0, 0.5)

    def embed(self, ids):
        """ids [B, L]: text ids as they are, speech rows as -1 - row."""
        text = self.llm.model.model.embed_tokens(ids.clamp_min(0))
        speech = self.speech_embedding((-1 - ids).clamp_min(0))
        return torch.where((ids >= 0)[..., None], text, speech)

    def hidden_states(self, x, start=0, caches=None):
        """x [B, L, hidden] at positions start..: the state behind the final norm and every layer's attention."""
        length = x.shape[1]
        frequency = THETA ** (-torch.arange(0, HEAD, 2, dtype=torch.float32, device=x.device) / HEAD)
        angle = torch.arange(start, start + length, dtype=torch.float32, device=x.device)[:, None] * frequency
        cosine, sine = torch.cos(angle), torch.sin(angle)
        mask = torch.full((length, start + length), float("-inf"), device=x.device).triu(start + 1)
        attention = []
        for i, layer in enumerate(self.llm.model.model.layers):
            x, weights = layer(x, cosine.to(x.dtype), sine.to(x.dtype), mask, None if caches is None else caches[i])
            attention.append(weights)
        return self.llm.model.model.norm(x), attention


def sequence(codes, prompt_text, text, prompt_speech):
    """Input ids of spec llm 4.1, speech rows as -1 - row."""
    return [-1 - (codes + SOS)] + list(prompt_text) + list(text) + [-1 - (codes + TASK)] + [-1 - c for c in prompt_speech]


def generate(model, prompt_text, text, prompt_speech, generator=None, top_p=0.8, top_k=25, window=10):
    """The decode loop and sampler of spec llm 6 and 7 (greedy without a generator). Returns codes."""
    n, out = model.codes, []
    caches = [[] for _ in model.llm.model.model.layers]
    ids, start = torch.tensor([sequence(n, prompt_text, text, prompt_speech)]), 0
    with torch.no_grad():
        for i in range(20 * len(text)):
            hidden, _ = model.hidden_states(model.embed(ids), start, caches)
            start += ids.shape[1]
            p = torch.log_softmax(model.llm_decoder(hidden[0, -1]), -1)
            if i < 2 * len(text):
                p[n:] = float("-inf")
            code = int(p.argmax()) if generator is None else _draw(p, out[-window:], top_p, top_k, generator)
            if code >= n:
                break
            out.append(code)
            ids = torch.tensor([[-1 - code]])
    return out


def _draw(log_p, recent, top_p, top_k, generator):
    p, order = torch.sort(torch.softmax(log_p, -1), descending=True, stable=True)
    before = torch.cumsum(p, 0) - p
    kept = int((before[:top_k] < top_p).sum())
    code = int(order[torch.multinomial(p[:kept], 1, generator=generator)])
    if code in recent:
        log_p = log_p.clone()
        log_p[code] = float("-inf")
        code = int(torch.multinomial(torch.softmax(log_p, -1), 1, generator=generator))
    return code
