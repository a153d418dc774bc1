"""Refining masks along the edges of images by a dense CRF, in worker processes where there are many."""
