"""Is it still the same person: cosine of face embeddings to the photo, over time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from visavis.errors import ModelError

MODEL_NAME = "face-reidentification-retail-0095.xml"
CROP = 128  # px
DRIFT_SECONDS = 20.0  # shorter clips show noise, not drift

# Where eyes (the person's right, left), nose tip and mouth corners sit in the crop, 0..1.
# Source: the model's page in openvinotoolkit/open_model_zoo.
REFERENCE = np.array(
    [
        (0.31556875, 0.46157411),
        (0.68262292, 0.46157411),
        (0.50026250, 0.64050536),
        (0.34947188, 0.82469196),
        (0.65343645, 0.82469196),
    ],
    np.float32,
)


def five_points(points: np.ndarray) -> np.ndarray:
    """Eye centres, nose tip and mouth corners ``(5, 2)`` px from mesh points ``(N, 2+)``."""
    xy = np.asarray(points)[:, :2]
    eyes = [xy[[33, 133, 159, 145]].mean(axis=0), xy[[263, 362, 386, 374]].mean(axis=0)]
    return np.array([*eyes, xy[4], xy[61], xy[291]], np.float32)


def align(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The face as the embedding wants it: ``(128, 128, 3)`` uint8 RGB, five points on
    ``REFERENCE``.
    """
    matrix, _ = cv2.estimateAffinePartial2D(five_points(points), REFERENCE * CROP, method=cv2.LMEDS)
    if matrix is None:
        raise ValueError("the five face points do not define a crop")
    return cv2.warpAffine(
        image, matrix, (CROP, CROP), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE
    )


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two embeddings, -1..1."""
    return float(np.dot(a, b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))


class FaceEmbedder:
    """face-reidentification-retail-0095 (Intel Open Model Zoo, Apache-2.0): 256-d, cosine."""

    def __init__(self, model: Path, threads: int = 1):
        """Compile the network; ``ModelError`` when the file is missing or unreadable."""
        import openvino as ov

        model = Path(model)
        if not model.is_file():
            raise ModelError(f"{model}: identity model not found; put {MODEL_NAME} and .bin there")
        try:
            self._net = ov.Core().compile_model(
                str(model),
                "CPU",
                {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"},
            )
        except RuntimeError as error:
            raise ModelError(f"{model}: OpenVINO cannot read it: {error}") from error

    def __call__(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Embedding ``(256,)`` float32 of the face at mesh ``points`` ``(N, 2+)`` px in an RGB
        image.
        """
        bgr = align(image, points)[..., ::-1].astype(np.float32).transpose(2, 0, 1)[None]
        return (
            self._net([np.ascontiguousarray(bgr)])[self._net.output(0)]
            .reshape(-1)
            .astype(np.float32)
        )


@dataclass(frozen=True)
class Identity:
    """Cosines to the photo over a clip; ``slope_per_minute`` tells a face that drifts away."""

    mean: float
    minimum: float
    slope_per_minute: float
    count: int


def summarise(cosines: np.ndarray, times_s: np.ndarray) -> Identity:
    """Mean, minimum and least-squares slope (NaN under 20 s: noise, not drift).

    Args:
        cosines: ``(K,)``.
        times_s: ``(K,)`` seconds.
    """
    cosines, times_s = np.asarray(cosines, float), np.asarray(times_s, float)
    if len(cosines) == 0:
        return Identity(*(float("nan"),) * 3, 0)
    long = len(cosines) > 2 and np.ptp(times_s) >= DRIFT_SECONDS
    slope = np.polyfit(times_s, cosines, 1)[0] * 60 if long else np.nan
    return Identity(float(cosines.mean()), float(cosines.min()), float(slope), len(cosines))
