"""Bilateral-Fusion Module (paper section 3.3, "MHA-B", late fusion) and the audio projection of the queries.

Each frame has one audio token, so both directions of the attention share one softmax over the frame's pixels: the
visual side receives the audio value spread by that map, the audio side the visual values pooled by it. Facts of the
release kept here: residuals start from the *normalised* inputs, positions enter queries and keys only, no
feed-forward, gates start at 1e-4. Departure (equal up to rounding): with a single audio token every projection of
pixels can be moved to the other side of its product, so that no (pixels x d x d) product is left. That reads weights;
where a projection is more than its weights (an adapter, say), all are called one after the other.

Axes: F packed frames, N pixels (h * w), d width, D audio width, M heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import nn
from transformers import initialization as init

from .configuration_combo import ComboConfig
from .modeling_combo_kernels import is_plain, linear
from .modeling_combo_pixel_decoder import sine_position_embedding


MAX_LOGIT = 50000.0


class ComboBilateralAttention(nn.Module):
    """S = (Wq(v + pos_v) / sqrt(d_head)) . (Wk(a + pos_a)); v' = v + g_v out_v(softmax(S) Wa a); a' likewise."""

    def __init__(self, config: ComboConfig) -> None:
        super().__init__()
        dim, audio_dim = config.hidden_dim, config.audio_config["embedding_size"]
        self.heads, self.dropout, self.gate_init = config.fusion_heads, config.fusion_dropout, config.fusion_gate_init
        self.visual_norm = nn.LayerNorm(dim)
        self.audio_norm = nn.LayerNorm(audio_dim)
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(audio_dim, dim)
        self.visual_value_proj = nn.Linear(dim, dim)
        self.audio_value_proj = nn.Linear(audio_dim, dim)
        self.visual_out_proj = nn.Linear(dim, dim)
        self.audio_out_proj = nn.Linear(dim, audio_dim)
        self.visual_gate = nn.Parameter(torch.empty(dim))
        self.audio_gate = nn.Parameter(torch.empty(audio_dim))

    def reset_combo_parameters(self) -> None:
        init.constant_(self.visual_gate, self.gate_init)
        init.constant_(self.audio_gate, self.gate_init)

    def forward(
        self, visual: torch.Tensor, audio: torch.Tensor, visual_pos: torch.Tensor, audio_pos: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Args: visual (F, N, d), audio (F, D), visual_pos (1, N, d), audio_pos (1, D).
        Returns: visual (F, N, d), audio (F, D), attention (F, N, M)."""
        visual, audio = self.visual_norm(visual), self.audio_norm(audio)
        projections = (self.q_proj, self.visual_value_proj, self.visual_out_proj)
        if all(is_plain(projection, nn.Linear) for projection in projections):
            return self._folded(visual, audio, visual_pos, audio_pos)
        query = self.q_proj(visual + visual_pos).unflatten(2, (self.heads, -1))  # (F, N, M, d / M)
        key = self._key(audio, audio_pos)
        to_visual, to_audio, attention = self._attend(torch.einsum("fnmk,fmk->fnm", query, key))
        audio_value = self.audio_value_proj(audio).unflatten(1, (self.heads, -1))  # (F, M, d / M)
        visual_delta = self.visual_out_proj(torch.einsum("fnm,fmk->fnmk", to_visual, audio_value).flatten(2))
        visual_value = self.visual_value_proj(visual).unflatten(2, (self.heads, -1))
        audio_delta = self.audio_out_proj(torch.einsum("fnm,fnmk->fmk", to_audio, visual_value).flatten(1))
        return visual + self.visual_gate * visual_delta, audio + self.audio_gate * audio_delta, attention

    def _folded(
        self, visual: torch.Tensor, audio: torch.Tensor, visual_pos: torch.Tensor, audio_pos: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same of normalised inputs, with the projections of pixels moved to the other side of their products."""
        dim = visual.shape[2]
        head_dim = dim // self.heads
        key = self._key(audio, audio_pos)
        # per head: (v + pos) Wq^T k = (v + pos) . (Wq^T k)
        folded = torch.einsum("fmk,mkd->fdm", key, self.q_proj.weight.view(self.heads, head_dim, dim))
        shift = (key * self.q_proj.bias.view(self.heads, head_dim)).sum(-1)  # (F, M)
        places = torch.einsum("nd,fdm->fnm", visual_pos[0], folded)  # summed here, where a map has M channels, not d
        to_visual, to_audio, attention = self._attend(visual @ folded + places + shift[:, None])

        audio_value = self.audio_value_proj(audio).view(-1, self.heads, head_dim)  # (F, M, d / M)
        out_weight = self.visual_out_proj.weight.view(dim, self.heads, head_dim)
        per_head = torch.einsum("fmk,dmk->fmd", audio_value, out_weight)  # (F, M, d)
        visual_delta = to_visual @ (per_head * self.visual_gate)  # (F, N, d)

        pooled = torch.einsum("fnm,fnd->fmd", to_audio, visual)  # (F, M, d)
        value_weight = self.visual_value_proj.weight.view(self.heads, head_dim, dim)
        value_bias = self.visual_value_proj.bias.view(self.heads, head_dim)
        pooled = torch.einsum("fmd,mkd->fmk", pooled, value_weight) + to_audio.sum(1)[..., None] * value_bias
        audio_delta = self.audio_out_proj(pooled.flatten(1))  # (F, D)
        shifted = visual + self.visual_gate * self.visual_out_proj.bias
        return shifted.add_(visual_delta), audio + self.audio_gate * audio_delta, attention

    def _key(self, audio: torch.Tensor, audio_pos: torch.Tensor) -> torch.Tensor:
        """Scaled keys of the sound: (F, M, d / M)."""
        key = self.k_proj(audio + audio_pos).unflatten(1, (self.heads, -1))
        return key * key.shape[2] ** -0.5

    def _attend(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits (F, N, M) -> softmax over pixels, with dropout for either direction, and without."""
        logits = logits - logits.amax(dim=1, keepdim=True)
        attention = logits.clamp(min=-MAX_LOGIT, max=MAX_LOGIT).softmax(dim=1)
        to_visual = nnf.dropout(attention, self.dropout, self.training)
        return to_visual, nnf.dropout(attention, self.dropout, self.training), attention


class ComboBilateralFusion(nn.Module):
    """Mask features and audio embedding look at each other. With `fusion=False` only the level embedding is added."""

    def __init__(self, config: ComboConfig) -> None:
        super().__init__()
        self.level_embed = nn.Embedding(1, config.hidden_dim)
        self.audio_position = nn.Embedding(1, config.audio_config["embedding_size"])
        self.attention = ComboBilateralAttention(config) if config.fusion else None

    def forward(
        self, mask_features: torch.Tensor, audio: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Args: mask_features (F, d, h, w), audio (F, D).
        Returns: mask features (F, d, h, w), audio (F, D), attention over pixels (F, M, h, w) or None."""
        _, dim, height, width = mask_features.shape
        first = torch.zeros(1, dtype=torch.long, device=audio.device)  # embeddings are called: they may be elsewhere
        visual = mask_features.flatten(2).transpose(1, 2) + self.level_embed(first)  # (F, N, d)
        attention = None
        if self.attention is not None:
            position = sine_position_embedding(height, width, dim, mask_features).flatten(2).transpose(1, 2)
            visual, audio, attention = self.attention(visual, audio, position, self.audio_position(first))
            attention = attention.transpose(1, 2).unflatten(2, (height, width))  # (F, M, h, w)
        return visual.transpose(1, 2).unflatten(2, (height, width)), audio, attention


class ComboAudioProjection(nn.Module):
    """Audio MLP of the queries: D -> 4096 -> 4096 -> d, ReLU between, none at the end."""

    def __init__(self, config: ComboConfig) -> None:
        super().__init__()
        width = config.audio_hidden_dim
        self.layers = nn.Sequential(
            nn.Linear(config.audio_config["embedding_size"], width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, config.hidden_dim),
        )

    def reset_combo_parameters(self) -> None:
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """(F, D) -> (F, d)."""
        return linear(self.layers, audio)
