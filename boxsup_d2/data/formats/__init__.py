"""Annotation formats, in and out: COCO (the form that everything here passes on), Pascal VOC, YOLO, polygons, PNGs, and
our own pseudo-mask files; and the inspection of a COCO dict.
"""
