"""Other annotation formats, and the check of annotations: VOC xml and YOLO in; YOLO-seg, VOC PNG and polygons out.

Everything here passes COCO dicts on in memory: what has ``images``, ``annotations`` and ``categories`` as a COCO json
has. Registering, labelling and training know that form alone.
"""

from boxsup_d2.data.exchange.export import write_mask_pngs, write_voc_png, write_yolo_seg
from boxsup_d2.data.exchange.inspection import Inspection, inspect_coco
from boxsup_d2.data.exchange.polygons import mask_to_polygons, to_polygons
from boxsup_d2.data.exchange.voc_xml import read_voc_xml
from boxsup_d2.data.exchange.yolo import read_yolo

__all__ = [
    "Inspection",
    "inspect_coco",
    "mask_to_polygons",
    "read_voc_xml",
    "read_yolo",
    "to_polygons",
    "write_mask_pngs",
    "write_voc_png",
    "write_yolo_seg",
]
