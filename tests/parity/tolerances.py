"""What "the same numbers" means, stage by stage: one table for all parity tests.

A stage passes where max |ours - golden| <= atol + rtol * (largest magnitude of the golden's stage), all in float32.
The official code differs from its own float64 run by about 1e-6 of the largest magnitude (noise_floor.json; with one
ResNet-50 and one PVTv2 clip: class logits 9e-7 and 8e-7, mask logits 1.8e-6 and 1.2e-6, scores 9e-7), so 5e-5 leaves a
factor of about 30 to 50. Mask bits on the threshold are treated in attention_ties.py, ties of the point sampling in
test_losses.py; both bound what rounding may explain, and test_sensitivity.py shows that a wrong weight, a wrong
threshold and a wrong number of swaps are caught.
"""

from __future__ import annotations

from typing import NamedTuple


class Tolerance(NamedTuple):
    atol: float
    rtol: float
    why: str


STAGES: dict[str, Tolerance] = {
    "backbone": Tolerance(0, 5e-5, "convolutions and norms in another order; measured 1e-6"),
    "maskige_backbone": Tolerance(0, 5e-5, "as backbone"),
    "siam_scale": Tolerance(0, 5e-5, "a sigmoid of a mean; measured 3e-7"),
    "siam_fused": Tolerance(0, 5e-5, "as backbone"),
    "pixel_encoder_layer": Tolerance(0, 5e-5, "levels are summed one by one; measured 1e-6"),
    "multi_scale": Tolerance(0, 5e-5, "as pixel_encoder_layer"),
    "mask_features": Tolerance(0, 5e-5, "GroupNorm and a 3x3 convolution; measured 1e-6"),
    "audio_in_head": Tolerance(0, 5e-5, "VGGish; measured 1e-6"),
    "bfm_visual": Tolerance(0, 5e-5, "projections of pixels are folded into the audio side; measured 1e-6"),
    "bfm_audio": Tolerance(0, 5e-5, "as bfm_visual; measured 2e-6"),
    "audio_transformed": Tolerance(0, 5e-5, "two products of width 4096; measured 1e-6"),
    "query_init": Tolerance(0, 5e-5, "a sum"),
    "decoder_layer": Tolerance(
        0, 5e-5, "attention masks equal but for rounding ties (see attention_ties.py); measured 2e-6"
    ),
    "layer_logits": Tolerance(0, 5e-5, "as decoder_layer"),
    "layer_masks_mean": Tolerance(0, 5e-5, "as decoder_layer"),
    "layer_masks_std": Tolerance(0, 5e-5, "as decoder_layer"),
    "pred_logits": Tolerance(0, 5e-5, "as decoder_layer"),
    "pred_masks": Tolerance(0, 5e-5, "as decoder_layer"),
    "sem_seg": Tolerance(0, 5e-5, "a sum over 100 queries"),
    "argmax": Tolerance(1e-4, 0, "fraction of pixels with another label; measured 5e-5 at the worst"),
    "loss_term": Tolerance(0, 1e-5, "points injected, so only sums differ"),
    "gradient_norm": Tolerance(0, 1e-3, "official code with 1 against 2 threads: 1e-4"),
    "gradient_values": Tolerance(
        0, 1e-2, "single entries near zero; official code with 1 against 2 threads not recorded"
    ),
    "log_mel": Tolerance(1e-4, 0, "both compute in float64; measured 0 after rounding to float32"),
    "log_mel_resampled": Tolerance(
        2e-3,
        0,
        "44.1 kHz sound. The release resamples with resampy, which interpolates linearly in a table of its "
        "Kaiser-windowed sinc; here the same window is computed at every phase, zero crossings are counted after the "
        "roll-off, and their number is rounded (46 for 50 * 0.917). Measured 7.6e-4",
    ),
    "resampled_waveform": Tolerance(1e-4, 0, "as log_mel_resampled; measured 4.5e-5 at a peak of 0.3"),
    "maskige": Tolerance(0, 0, "integers"),
    "metric": Tolerance(1e-6, 0, "exact counts here, float32 sums in the release"),
    "mask2former": Tolerance(0, 1e-5, "two live implementations, tiny weights"),
}


def allowed(stage: str, magnitude: float = 0.0) -> float:
    """Largest permitted difference of a stage whose largest magnitude is `magnitude`."""
    tolerance = STAGES[stage]
    return tolerance.atol + tolerance.rtol * magnitude
