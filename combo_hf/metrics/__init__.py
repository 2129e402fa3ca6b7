"""Measures of audio-visual segmentation as AVSBench defines them."""

from combo_hf.metrics.functional import PROTOCOLS, SemanticScores, f_measure, jaccard
from combo_hf.metrics.video_scores import VideoScores


__all__ = ["PROTOCOLS", "SemanticScores", "VideoScores", "f_measure", "jaccard"]
