"""The live server on doubles, as a program: prints its address. For the browser tests."""

from __future__ import annotations

import sys

from live_doubles import live_app

from visavis.avatar import load_avatar
from visavis.serve.cli import run
from visavis.serve.config import ASSETS, ServeConfig

TTS = (
    f'{sys.executable} -c "import math,struct,sys,wave; sys.stdin.read(); '
    "w=wave.open(sys.stdout.buffer,'wb'); w.setparams((1,2,16000,0,'NONE','')); "
    "w.writeframes(b''.join(struct.pack('<h', int(9000*math.sin(i/9))) for i in range(320000)))\""
)

if __name__ == "__main__":
    config = ServeConfig.of(port=0, size=256, tts=TTS, drain_s=1, detach_s=3, header_timeout_s=1)
    run(config, live_app(config, load_avatar(ASSETS / "demo.avatar"), processes=True))
