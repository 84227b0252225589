"""LLaDA (arXiv 2502.09992) in plain torch: a Llama-shaped transformer whose attention sees the whole sequence.

Parameter names are those of the released checkpoints, so `state_dict()` is the checkpoint.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class LLaDAShape:
    """The fields of LLaDA's config.json that decide the computation."""

    d_model: int
    n_heads: int
    n_kv_heads: int
    n_layers: int
    mlp_hidden_size: int
    vocab_size: int
    embedding_size: int  # rows of the embedding table; those at or past vocab_size are padding
    mask_token_id: int
    eos_token_id: int
    max_sequence_length: int
    rope_theta: float = 500000.0
    rms_norm_eps: float = 1e-5
    weight_tying: bool = False

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise ValueError(f"d_model={self.d_model} must split into n_heads={self.n_heads} heads of even size")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads={self.n_heads} must be a multiple of n_kv_heads={self.n_kv_heads}")
        if self.embedding_size < self.vocab_size:
            raise ValueError(f"embedding_size={self.embedding_size} must be at least vocab_size={self.vocab_size}")

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @classmethod
    def from_config(cls, config: dict) -> "LLaDAShape":
        """Read a parsed config.json; absent or null sizes take LLaDA's own defaults."""
        fields = {name: config[name] for name in cls.__dataclass_fields__ if config.get(name) is not None}
        fields.setdefault("n_kv_heads", fields["n_heads"])
        fields.setdefault("embedding_size", fields["vocab_size"])
        return cls(**fields)

    def to_config(self) -> dict:
        """The config.json of a checkpoint of this shape."""
        return {
            "architectures": ["LLaDAModelLM"],
            "model_type": "llada",
            **asdict(self),
            "pad_token_id": self.eos_token_id,
            "block_type": "llama",
            "include_bias": False,
            "include_qkv_bias": False,
            "rope": True,
            "torch_dtype": "float32",
        }


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        h = x.float()  # in fp32 whatever the model's dtype, as the released code does
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        return h.to(x.dtype) * self.weight


def rope_table(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, each [length, head_dim] fp32; positions count from 0 at the sequence's first token."""
    inverse = theta ** (-torch.arange(0, head_dim, 2, device=device).float() / head_dim)
    angle = torch.arange(length, device=device).float()[:, None] * inverse
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [B, heads, L, head_dim], in fp32, pairs (i, i + head_dim / 2)."""
    h = x.float()
    first, second = h.chunk(2, -1)
    return (h * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


class Block(nn.Module):
    def __init__(self, shape: LLaDAShape):
        super().__init__()
        self.shape = shape
        d, kv, mlp = shape.d_model, shape.n_kv_heads * shape.head_dim, shape.mlp_hidden_size
        self.attn_norm = RMSNorm(d, shape.rms_norm_eps)
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, kv, bias=False)
        self.v_proj = nn.Linear(d, kv, bias=False)
        self.attn_out = nn.Linear(d, d, bias=False)
        self.ff_norm = RMSNorm(d, shape.rms_norm_eps)
        self.ff_proj = nn.Linear(d, mlp, bias=False)
        self.up_proj = nn.Linear(d, mlp, bias=False)
        self.ff_out = nn.Linear(mlp, d, bias=False)

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [batch, length, d_model], normed; cos and sin [length, head_dim]."""
        batch, length, _ = x.shape
        q, k, v = (
            proj(x).view(batch, length, -1, self.shape.head_dim).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.attend(rotate(q, cos, sin), rotate(k, cos, sin), v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [batch, heads, rows, head_dim], k and v [batch, kv_heads, length, head_dim] -> [batch, rows, d_model]."""
        group = self.shape.n_heads // self.shape.n_kv_heads
        if group > 1:
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = (q @ k.mT).float() * self.shape.head_dim**-0.5  # no mask: every position sees every other
        out = scores.softmax(-1).to(v.dtype) @ v
        return self.attn_out(out.transpose(1, 2).flatten(2))

    def feed_forward(self, x: Tensor) -> Tensor:
        h = self.ff_norm(x)
        return self.ff_out(F.silu(self.ff_proj(h)) * self.up_proj(h))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attn_norm(x), cos, sin)
        return x + self.feed_forward(x)


class Transformer(nn.Module):
    def __init__(self, shape: LLaDAShape):
        super().__init__()
        self.shape = shape
        self.wte = nn.Embedding(shape.embedding_size, shape.d_model)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.ln_f = RMSNorm(shape.d_model, shape.rms_norm_eps)
        if not shape.weight_tying:
            self.ff_out = nn.Linear(shape.d_model, shape.embedding_size, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        cos, sin = rope_table(input_ids.shape[1], self.shape.head_dim, self.shape.rope_theta, input_ids.device)
        x = self.wte(input_ids)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.logits(x)

    def logits(self, x: Tensor) -> Tensor:
        """Residual stream [batch, rows, d_model] after the last block -> logits [batch, rows, embedding_size] fp32."""
        head = self.wte.weight if self.shape.weight_tying else self.ff_out.weight
        return F.linear(self.ln_f(x), head).float()


class LLaDA(nn.Module):
    def __init__(self, shape: LLaDAShape):
        super().__init__()
        self.shape = shape
        self.model = nn.ModuleDict({"transformer": Transformer(shape)})

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids [B, L] int64 -> logits [B, L, embedding_size] fp32; row i predicts position i.

        All L tokens attend to each other, so the rows of a batch must have one length. The table's padding has its
        columns, which are part of the model's softmax; that they are never written is the sampler's business.
        """
        return self.model["transformer"](input_ids)

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> "LLaDA":
        """Read config.json and *.safetensors of a directory, as fp32; every parameter must be there, and no other."""
        from safetensors.torch import load_file

        path = Path(path)
        model = cls(LLaDAShape.from_config(json.loads((path / "config.json").read_text())))
        weights: dict[str, Tensor] = {}
        for file in sorted(path.glob("*.safetensors")):
            weights.update(load_file(file))
        if not weights:
            raise ValueError(f"{path} holds no *.safetensors file; give the directory of a LLaDA checkpoint")
        model.load_state_dict(weights)
        return model.eval()

    def save_checkpoint(self, path: str | Path) -> None:
        """Write config.json and model.safetensors (fp32) to a directory."""
        from safetensors.torch import save

        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps(self.shape.to_config(), indent=2) + "\n")
        weights = {name: value.detach().float().cpu().contiguous() for name, value in self.state_dict().items()}
        (path / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
