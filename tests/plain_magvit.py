"""MAGVIT-v2 written out from its weights' names, without modules: what `images.magvit` must equal."""

import torch
from torch.nn.functional import conv2d

GROUPS = 8


def encode(weights, pictures):
    x = _conv(weights, "encoder.conv_in", pictures)
    for level in range(_count(weights, "encoder.down.")):
        x = _blocks(weights, f"encoder.down.{level}.block.", x)
        name = f"encoder.down.{level}.downsample.conv"
        if f"{name}.weight" in weights:
            padded = x.new_zeros(*x.shape[:2], x.shape[2] + 1, x.shape[3] + 1)
            padded[..., :-1, :-1] = x
            x = conv2d(padded, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=2)
    x = _conv(weights, "encoder.quant_conv", _end(weights, "encoder", _middle(weights, "encoder", x)))
    codes = torch.zeros_like(x[:, 0], dtype=torch.long)
    for channel in range(x.shape[1]):
        codes = codes * 2 + (x[:, channel] > 0)
    return codes


def decode(weights, codes, bits):
    x = torch.stack([(codes // 2 ** (bits - 1 - bit) % 2) * 2.0 - 1 for bit in range(bits)], 1)
    x = _conv(weights, "decoder.conv_in", _conv(weights, "decoder.post_quant_conv", x))
    x = _middle(weights, "decoder", x)
    for level in reversed(range(_count(weights, "decoder.up."))):
        x = _blocks(weights, f"decoder.up.{level}.block.", x)
        if level:
            x = _conv(weights, f"decoder.up.{level}.upsample.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    return _end(weights, "decoder", x)


def _count(weights, prefix):
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in weights if name.startswith(prefix))


def _conv(weights, name, x):
    weight = weights[f"{name}.weight"]
    return conv2d(x, weight, weights[f"{name}.bias"], padding=weight.shape[-1] // 2)


def _norm(weights, name, x):
    grouped = x.reshape(len(x), GROUPS, -1)
    spread = (grouped - grouped.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True)
    normed = ((grouped - grouped.mean(-1, keepdim=True)) / (spread + 1e-6).sqrt()).reshape(x.shape)
    return normed * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]


def _swish(x):
    return x / (1 + (-x).exp())


def _block(weights, name, x):
    inner = _conv(weights, f"{name}.conv1", _swish(_norm(weights, f"{name}.norm1", x)))
    inner = _conv(weights, f"{name}.conv2", _swish(_norm(weights, f"{name}.norm2", inner)))
    return inner + (_conv(weights, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in weights else x)


def _blocks(weights, prefix, x):
    for index in range(_count(weights, prefix)):
        x = _block(weights, f"{prefix}{index}", x)
    return x


def _middle(weights, part, x):
    x = _block(weights, f"{part}.mid.block_1", x)
    name = f"{part}.mid.attn_1"
    query, key, value = (_conv(weights, f"{name}.{w}", _norm(weights, f"{name}.norm", x)).flatten(2) for w in "qkv")
    shares = torch.softmax(torch.einsum("ncq,nck->nqk", query, key) * query.shape[1] ** -0.5, -1)
    x = x + _conv(weights, f"{name}.proj_out", torch.einsum("nqk,nck->ncq", shares, value).reshape(x.shape))
    return _block(weights, f"{part}.mid.block_2", x)


def _end(weights, part, x):
    return _conv(weights, f"{part}.conv_out", _swish(_norm(weights, f"{part}.norm_out", x)))
