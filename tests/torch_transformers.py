"""Small torch models of the transformer families that the project promises to carry."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BUILDERS", "N_TOKENS", "VOCABULARY", "TextTransformer"]

N_CLASSES = 10
VOCABULARY = 30
N_TOKENS = 12
PADDING = 0


class TorchAttention(nn.Module):
    """Self-attention by nn.MultiheadAttention."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, n_heads, batch_first=True)

    def forward(self, x: Tensor, ignored: Tensor | None = None) -> Tensor:
        return self.attention(x, x, x, key_padding_mask=ignored, need_weights=False)[0]


class DotProductAttention(nn.Module):
    """Self-attention by scaled_dot_product_attention, as in timm and transformers."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, ignored: Tensor | None = None) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.n_heads, d // self.n_heads).permute(2, 0, 3, 1, 4).unbind(0)
        mask = None if ignored is None else ~ignored[:, None, None, :].expand(n, 1, t, t)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.project(y.transpose(1, 2).reshape(n, t, d))


class EncoderLayer(nn.Module):
    """Attention, then two linear layers with GELU, each after a LayerNorm and around a shortcut."""

    def __init__(self, width: int, attention: type[nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = attention(width, 2)
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, ignored: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), ignored)
        return x + self.layers(self.norm2(x))


class Vit(nn.Module):
    """ViT's graph: patches, a class token, learned positions, encoder layers, a head on the class token."""

    def __init__(self, attention: type[nn.Module], width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width))
        self.layers = nn.ModuleList(EncoderLayer(width, attention) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


class WindowAttention(nn.Module):
    """Attention inside windows of 4 x 4, shifted by a roll, with a bias per relative position and a mask."""

    def __init__(self, width: int, size: int, shift: int) -> None:
        super().__init__()
        self.size, self.shift, self.n_heads = size, shift, 2
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn(49, self.n_heads))
        place = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        relative = place[:, :, None] - place[:, None, :] + 3
        self.register_buffer("index", relative[0] * 7 + relative[1])
        self.register_buffer("mask", self._mask())

    def _mask(self) -> Tensor:
        """Return (windows, 16, 16): what keeps patches apart that only the roll made neighbours."""
        region = torch.zeros(1, self.size, self.size, 1)
        if self.shift:
            for axis, step in ((1, 1), (2, 3)):
                region.narrow(axis, self.size - 4, 4 - self.shift).add_(step)
                region.narrow(axis, self.size - self.shift, self.shift).add_(2 * step)
        ids = self._windows(region).squeeze(-1)
        return (ids[:, :, None] != ids[:, None, :]).float() * -100.0

    def _windows(self, x: Tensor) -> Tensor:
        n, h, w, k = x.shape
        return x.view(n, h // 4, 4, w // 4, 4, k).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, k)

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, k = x.shape
        rolled = torch.roll(x, (-self.shift, -self.shift), (1, 2)) if self.shift else x
        windows = self._windows(rolled)
        qkv = self.qkv(windows).reshape(-1, 16, 3, self.n_heads, k // self.n_heads).permute(2, 0, 3, 1, 4)
        scores = qkv[0] * (k // self.n_heads) ** -0.5 @ qkv[1].transpose(-2, -1)
        scores = scores + self.bias[self.index.view(-1)].view(16, 16, -1).permute(2, 0, 1).unsqueeze(0)
        n_windows = self.mask.shape[0]
        scores = (scores.view(-1, n_windows, self.n_heads, 16, 16) + self.mask[:, None]).view(-1, self.n_heads, 16, 16)
        y = self.project((scores.softmax(-1) @ qkv[2]).transpose(1, 2).reshape(-1, 16, k))
        y = y.view(n, h // 4, w // 4, 4, 4, k).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, k)
        return torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y


class SwinBlock(nn.Module):
    """An encoder layer on (N, H, W, K) whose attention sees one window."""

    def __init__(self, width: int, size: int, shift: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = WindowAttention(width, size, shift)
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.layers(self.norm2(x))


class Merge(nn.Module):
    """Join 2 x 2 neighbours into one patch of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduce(self.norm(torch.cat(corners, -1)))


class Swin(nn.Module):
    """Swin's graph: patches, plain and shifted windows, merged patches, a head on their mean."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 2, 2)
        self.blocks = nn.Sequential(
            SwinBlock(width, 8, 0), SwinBlock(width, 8, 2), Merge(width), SwinBlock(2 * width, 4, 0)
        )
        self.norm, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patches(x).permute(0, 2, 3, 1))
        return self.head(self.norm(x).mean((1, 2)))


class TextTransformer(nn.Module):
    """A text classifier: token ids, 0 for padding, to the mean of what encoder layers make of the others."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width, padding_idx=PADDING)
        self.positions = nn.Parameter(torch.randn(1, N_TOKENS, width))
        self.layers = nn.ModuleList(EncoderLayer(width, DotProductAttention) for _ in range(2))
        self.head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, N_CLASSES))

    def forward(self, ids: Tensor) -> Tensor:
        return self.classify(self.embedding(ids), ids)

    def classify(self, embedded: Tensor, ids: Tensor) -> Tensor:
        """Go on from the embedding."""
        ignored = ids == PADDING
        x = embedded + self.positions
        for layer in self.layers:
            x = layer(x, ignored)
        kept = (~ignored).unsqueeze(-1).to(x.dtype)
        return self.head((x * kept).sum(1) / kept.sum(1))


BUILDERS: Mapping[str, Callable[[], nn.Module]] = {
    "swin": Swin,
    "text": TextTransformer,
    "vit": lambda: Vit(DotProductAttention),
    "vit-mha": lambda: Vit(TorchAttention),
}
