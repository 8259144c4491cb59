"""HiFT, the vocoder (spec hift), for training: upstream's names and arithmetic; weight norm in the form weight_g, weight_v."""
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

RATES, KERNELS = (8, 5, 3), (16, 11, 7)
DOWNS = ((30, 15), (6, 3), (1, 1))
SOURCE_KERNELS, KERNELS_RES, DILATIONS = (7, 7, 11), (3, 7, 11), (1, 3, 5)
FRAME = 480


class _Snake(torch.autograd.Function):
    """x + sin(alpha x)^2 / alpha = x + (1 - cos(2 alpha x)) / (2 alpha): one transcendental each way."""

    @staticmethod
    def forward(context, x, alpha):
        context.save_for_backward(x, alpha)
        return x + (1 - torch.cos(x * (2 * alpha))) * (0.5 / alpha)

    @staticmethod
    def backward(context, grad):
        x, alpha = context.saved_tensors
        angle = x * (2 * alpha)
        slope = torch.sin(angle)
        grad_alpha = (grad * ((slope * x - (1 - torch.cos(angle)) * (0.5 / alpha)) / alpha)).sum((0, 2)).view_as(alpha)
        return grad * (1 + slope), grad_alpha


class Snake(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return _Snake.apply(x, self.alpha.clamp_min(0.1).view(-1, 1).to(x.dtype))


class Conv(nn.Module):
    """left: zeros in front, as many as the kernel spans, so that nothing looks ahead.

    gain is the norm of each filter at the start. normed: magnitude and direction apart; without, steps of a useful size
    blow the residual stacks up within 250.
    """

    def __init__(self, channels_in, channels_out, kernel, dilation=1, stride=1, left=None, gain=1.0, normed=True):
        super().__init__()
        self.dilation, self.stride, self.normed = dilation, stride, normed
        self.left = (kernel - 1) * dilation if left is None else left
        direction = torch.randn(channels_out, channels_in, kernel) / (channels_in * kernel) ** 0.5
        self.bias = nn.Parameter(torch.zeros(channels_out))
        if normed:
            self.weight_g = nn.Parameter(torch.full((channels_out, 1, 1), gain))
            self.weight_v = nn.Parameter(direction)
        else:
            self.weight = nn.Parameter(direction * gain)

    def forward(self, x):
        weight = self.weight if not self.normed else \
            self.weight_v * (self.weight_g * torch.rsqrt(self.weight_v.square().sum((1, 2), keepdim=True)))
        return F.conv1d(F.pad(x, (self.left, 0)) if self.left else x, weight, self.bias, self.stride, 0, self.dilation)


class ResBlock(nn.Module):
    def __init__(self, channels, kernel):
        super().__init__()
        self.convs1 = nn.ModuleList(Conv(channels, channels, kernel, d, gain=0.7) for d in DILATIONS)
        self.convs2 = nn.ModuleList(Conv(channels, channels, kernel, gain=0.25) for _ in DILATIONS)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in DILATIONS)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in DILATIONS)

    def forward(self, x):
        for c1, c2, a1, a2 in zip(self.convs1, self.convs2, self.activations1, self.activations2):
            x = x + c2(a2(c1(a1(x))))
        return x


class F0Predictor(nn.Module):
    def __init__(self, channels):
        super().__init__()
        layers = [Conv(80, channels, 4, left=0, gain=0.3), nn.ELU()]
        for _ in range(4):
            layers += [Conv(channels, channels, 3), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel):
        """[B, 80, T + 3] -> Hz [B, T]; the last three frames are look-ahead."""
        return self.classifier(self.condnet(mel).transpose(1, 2)).squeeze(-1).abs()


class Hift(nn.Module):
    def __init__(self, base=128, f0_channels=48):
        super().__init__()
        self.m_source = nn.ModuleDict({"l_linear": nn.Linear(9, 1)})
        self.conv_pre = Conv(80, base, 5, left=0, gain=0.12)     # a log mel's root mean square is 8
        self.ups = nn.ModuleList(Conv(base >> i, base >> (i + 1), k) for i, k in enumerate(KERNELS))
        self.source_downs = nn.ModuleList(Conv(18, base >> (i + 1), k, stride=s, left=s - 1, normed=False)
                                          for i, (k, s) in enumerate(DOWNS))
        self.source_resblocks = nn.ModuleList(ResBlock(base >> (i + 1), k) for i, k in enumerate(SOURCE_KERNELS))
        self.resblocks = nn.ModuleList(ResBlock(base >> (i + 1), k) for i in range(3) for k in KERNELS_RES)
        self.conv_post = Conv(base >> 3, 18, 7, gain=0.3)
        self.f0_predictor = F0Predictor(f0_channels)
        with torch.no_grad():
            self.conv_post.bias[:9] = -4.0
            self.f0_predictor.classifier.bias.fill_(60.0)
            self.f0_predictor.classifier.weight.mul_(40.0)
        self.register_buffer("window", torch.hann_window(16, dtype=torch.float64).float(), persistent=False)

    def decode(self, mel, spectrum):
        """mel [B, 80, T + 4] (the last four look-ahead), spectrum [B, 18, 120 T + 1] of the source -> [B, 18, 120 T + 1]."""
        x = self.conv_pre(mel)
        for i, rate in enumerate(RATES):
            x = self.ups[i](F.leaky_relu(x, 0.1).repeat_interleave(rate, 2))
            if i == 2:
                x = torch.cat([x[:, :, 1:2], x], 2)
            x = x + self.source_resblocks[i](self.source_downs[i](spectrum))
            x = (self.resblocks[3 * i](x) + self.resblocks[3 * i + 1](x) + self.resblocks[3 * i + 2](x)) / 3
        return self.conv_post(F.leaky_relu(x, 0.01))

    def synthesise(self, y):
        """[B, 18, F] -> audio [B, 4 (F - 1)], before the clamp."""
        magnitude = torch.exp(y[:, :9].clamp_max(4.6))
        turn = torch.sin(y[:, 9:])
        return torch.istft(torch.complex(magnitude * torch.cos(turn), magnitude * torch.sin(turn)), 16, 4, 16, self.window)

    def spectrum(self, source):
        """source [B, 480 T + 16], eight samples more on each side -> [B, 18, 120 T + 1]."""
        s = torch.stft(source, 16, 4, 16, self.window, center=False, return_complex=True)
        return torch.cat([s.real, s.imag], 1)

    def forward(self, mel, source):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.training):
            y = self.decode(mel, self.spectrum(source).to(mel.dtype))
        return self.synthesise(y.float())


def uniform_table(samples):
    """U of spec hift 5.3: [samples, 9]."""
    random = np.random.RandomState(0)
    random.randint(0, 2 ** 32, 5052970, dtype=np.uint64)
    return (random.randint(0, 2 ** 32, samples * 9, dtype=np.uint64) & 0xFFFFFF).reshape(-1, 9) / 2.0 ** 24


def sines(f0):
    """[T] Hz (f32) -> 0.1 sin(phase) [T, 9] in upstream's order of roundings (spec hift 5.2)."""
    f = np.float32
    r = np.fmod(f0.astype(f)[:, None] * np.arange(1, 10, dtype=f) * (f(1) / f(24000)), f(1))
    c, rows = np.zeros(9, f), []
    for row in r:
        c = c + row
        rows.append(c)
    return 0.1 * np.sin(((np.array(rows) * f(2)) * f(np.pi) * f(480)).astype(np.float64))


def source_of(f0, weight, bias, table):
    """f0 [T] -> the source [480 T]; weight [9], table [>= 480 T, 9]."""
    voiced = (f0 > 10).astype(float)
    level = np.repeat(voiced * 0.003 + (1 - voiced) * (0.1 / 3), FRAME)
    base = np.repeat((sines(f0) * voiced[:, None]) @ weight, FRAME)
    return np.tanh(base + level * (table[:len(level)] @ weight) + bias)


def speak(model, mel, table, f0=None):
    """mel [T, 80] -> (audio [480 T], f0): the whole of inference, final."""
    with torch.no_grad():
        x = torch.from_numpy(np.ascontiguousarray(mel.T))[None].to(model.conv_pre.bias.dtype)
        if f0 is None:
            f0 = model.f0_predictor(F.pad(x, (0, 3)))[0].numpy().astype(np.float32)
        line = model.m_source["l_linear"]
        source = source_of(f0, line.weight[0].double().numpy(), line.bias[0].item(), table)
        padded = torch.from_numpy(np.pad(source, 8, mode="reflect"))[None].to(x.dtype)
        y = model.decode(F.pad(x, (0, 4)), model.spectrum(padded))
        return model.synthesise(y)[0].clamp(-0.99, 0.99).numpy(), f0
