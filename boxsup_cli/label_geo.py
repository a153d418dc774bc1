"""``boxsup label --geojson``: boxes on a georeferenced raster, which is labelled window by window."""

import argparse
import os
import shutil

from boxsup_cli.errors import BadInput, bad_input
from boxsup_cli.exports import EXPORTS
from boxsup_cli.sources import Source


def run_geo(args: argparse.Namespace, out: str) -> None:
    """Label the boxes of ``args.geojson`` on the raster ``args.images``, and write a GeoJSON to ``out``.

    Raises:
        BadInput: before anything is done.
        RuntimeError, ValueError, OSError: the raster is damaged, the disk is full, another run is at work.
    """
    others = [*EXPORTS, "report", "polygons", "simplify", "overwrite-masks"]
    useless = [option for option in others if getattr(args, option.replace("-", "_"))]
    if useless:
        raise BadInput(f"--geojson is answered by a GeoJSON, --out: leave --{useless[0]} out.")
    path, raster = (os.path.abspath(os.path.expanduser(value)) for value in (args.geojson, args.images))
    for name, where in (("--geojson", path), ("--images", raster)):
        if not os.path.isfile(where):
            raise BadInput(f"{name}: there is no file '{where}'.")

    from boxsup_cli.console import errors, problems_table, short, show
    from boxsup_cli.label import make_job, summary_line, work_folder
    from boxsup_cli.label_job import check_classes, job_config, label, request_of
    from boxsup_cli.label_output import is_done, summary_without
    from boxsup_d2.data.formats.geo import mask_features, read_raster_boxes, write_windows
    from boxsup_d2.data.formats.problems import Problems
    from boxsup_d2.data.formats.pseudo_masks import PROVENANCE_KEY, read_pseudo_masks, write_pseudo_masks
    from boxsup_d2.engine.launch import launch
    from boxsup_d2.utils.files import file_sha256, json_sha256, seen_from
    from boxsup_d2.utils.lock import acquire_lock

    problems = Problems()
    with bad_input():
        found = read_raster_boxes(path, raster, problems)
    if len(problems):
        errors.print(problems_table(path, [problems], []))
    if len(problems) and not args.keep_going:
        raise BadInput(
            f"'{path}' has {len(problems)} mistake(s), listed above: nothing was done. Correct them, or use the rest "
            "with --keep-going."
        )
    if not found.boxes:
        raise BadInput(f"'{path}' has no box on '{raster}': there is nothing to do. Are they in one coordinate system?")
    work = work_folder(out)
    sha256 = json_sha256([file_sha256(path), os.path.getsize(raster)])
    windows = os.path.join(work, sha256[:16], "windows")
    job = make_job(args, Source(path, windows, {}, {}, sha256, as_it_is=False), out)
    with bad_input():
        check_classes(job, [{"id": 1, "name": "object"}])
        request = request_of(job, job_config(job), sha256, polygons=False, min_quality=args.min_quality)
    if is_done(out, request, force=args.force):
        show(f"'{short(out)}' is done: the same command has written it. Nothing was labelled.")
        return
    with bad_input():  # a folder that may not be written to
        os.makedirs(job.output_dir, exist_ok=True)
    with acquire_lock(work, "lock"):
        data = write_windows(found, raster, windows)
        Source(path, windows, data, data, sha256, as_it_is=False).write(work)
        launch(label, args.num_gpus, args=(job,), join=False)
        labelled = read_pseudo_masks(job.result)
        provenance = labelled["info"][PROVENANCE_KEY]
        provenance |= {
            "image_root": seen_from(out, os.path.dirname(raster)),
            "checkpoint": seen_from(out, provenance["checkpoint"]),
            "request": request,
        }
        if args.min_quality is not None:
            left = sum(annotation["quality"] < args.min_quality for annotation in labelled["annotations"])
            provenance["summary"] = summary_without(provenance["summary"], left, args.min_quality)
        # As any json that labelling writes, it says at its head where its masks come from.
        features = mask_features(found, raster, labelled, args.min_quality or 0.0)
        write_pseudo_masks(out, {**found.collection, "features": features}, provenance)
        shutil.rmtree(work, ignore_errors=True)
    show(summary_line(provenance["summary"], short(out), crowds=0))
