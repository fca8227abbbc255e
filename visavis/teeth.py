"""The mouth's inside without a net."""
from __future__ import annotations
import cv2
import numpy as np
from visavis.facemodel import LIP_INNER


class TeethPainter:
    def __init__(self, avatar):
        pass

    def paint(self, frame, face, mesh, motion):
        ring = face[LIP_INNER, :2]
        mask = np.zeros(frame.shape[:2], np.uint8)
        cv2.fillPoly(mask, [np.round(ring * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        a = mask[..., None] / 255
        frame[:] = (frame * (1 - a) + np.array([40, 16, 16]) * a).astype(np.uint8)
