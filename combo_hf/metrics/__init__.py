"""Measures of audio-visual segmentation as AVSBench defines them."""

from combo_hf.metrics.functional import PROTOCOLS, SemanticScores, f_measure, jaccard


__all__ = ["PROTOCOLS", "SemanticScores", "f_measure", "jaccard"]
