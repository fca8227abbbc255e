"""visavis prepare: surveys, quality, offsets, shards, report, side by side and with Ray; eSpeak NG."""

import json
import shutil
import sys

import numpy as np
import pytest

pytest.importorskip("torch")

from conftest import speech_like, write_wav

from visavis.errors import InputError
from visavis.facemodel import Pose, load_face_model
from visavis.track import Track
from visavis.train import augment, cli, espeak, hearing, prepare, survey, workers
from visavis.train.clips import (
    Clip,
    is_held_out_talker,
    is_withheld,
    load_clip,
    load_corpus,
    save_clip,
)
from visavis.train.evaluate import Voice, closure_counts, dips, recall_at_precision, runs_of
from visavis.train.phones import (
    PHONE_INDEX,
    PHONES,
    VISEMES,
    viseme_of_phone,
)
from visavis.train.quality import Limits, refusal, speech_facts, track_facts
from visavis.train.shards import (
    Entry,
    read_index,
    read_pictures,
    read_shards,
    write_shards,
)
from visavis.types import CHANNEL

GOOD = {
    "seconds": 3.0, "seen": 1.0, "eye_px": 60.0, "others": 0.0, "jump": 0.05, "turned": 0.0,
    "hidden": 0.0, "score": 0.99, "speech": 0.4,
}  # fmt: skip
FRAME = 320


def face_points(opening=0.0, scale=70.0, x=FRAME / 2, yaw=0.0):
    """``(478, 3)`` pixels of the mean face with its chin dropped, turned and placed."""
    points = load_face_model().template.copy()
    points[points[:, 1] > points[14, 1] - 1e-3, 1] += opening  # lower lip and chin alike
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    return Pose(turn, scale, np.array([x, FRAME / 2, 0.0])).apply(points).astype(np.float32)


def toy_track(seconds=2.0, fps=25, **places):
    n = round(seconds * fps)
    points = np.array([face_points(0.1 * abs(np.sin(0.5 * k)), **places) for k in range(n)])
    return Track(points, np.arange(n) / fps, np.full(n, 0.99, np.float32), (FRAME, FRAME))


def toy_survey(folder, name, *, lag_ms=0.0, pcm=None):
    """What a filmed file would leave: speech-like sound and a mouth that follows it, late."""
    pcm = (speech_like(3.0, seed=len(name)) * 32767).astype(np.int16) if pcm is None else pcm
    level = np.abs(pcm.astype(float)).reshape(-1, 320).max(1) / 32768
    level = np.convolve(level, np.ones(3) / 3, "same")
    times = np.arange(75) / 25
    opening = np.interp(times - lag_ms / 1000, np.arange(len(level)) / 50, level)
    points = np.array([face_points(0.5 * o) for o in opening])
    track = Track(points, times, np.full(75, 0.99, np.float32), (FRAME, FRAME))
    facts = track_facts(track, load_face_model().template) | speech_facts(pcm)
    facts |= {"others": 0.0, "hidden": 0.0, "name": name, "source": f"{name}.mp4", "stamp": "toy"}
    image = np.full((FRAME, FRAME, 3), 90, np.uint8)
    box = survey.picture_box(points[0])
    pictures = {k: survey._picture(image, box) for k in (0, 5, 10)}
    found = survey.Survey(facts, pcm, track, pictures=pictures, box=box)
    survey.write_survey(found, folder / name)
    return facts


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seconds": 0.4}, "too short"), ({"seen": 0.5}, "no face"),
        ({"eye_px": 12.0}, "too small"), ({"others": 0.9}, "several people"),
        ({"jump": 2.0}, "cut"), ({"turned": 0.5}, "turned away"), ({"hidden": 0.6}, "hidden"),
        ({"score": 0.3}, "unclear"), ({"speech": 0.0}, "no speech"), ({"error": "odd"}, "odd"),
    ],
)  # fmt: skip
def test_each_fault_of_a_clip_is_named_with_its_figure(change, word):
    assert refusal(GOOD, Limits()) is None
    assert word in refusal(GOOD | change, Limits())


def test_the_track_tells_size_angle_and_cuts():
    template = load_face_model().template
    plain = track_facts(toy_track(), template)
    assert refusal(plain | {"speech": 1.0}, Limits()) is None
    assert plain["eye_px"] == pytest.approx(70, rel=0.02)
    assert plain["fps"] == pytest.approx(25)
    small = track_facts(toy_track(scale=20.0), template)
    assert "too small" in refusal(small, Limits())
    turned = track_facts(toy_track(yaw=np.radians(45)), template)
    assert "turned away" in refusal(turned, Limits(min_eye_px=1))
    two = toy_track()
    two.points[25:, :, 0] += 100
    assert "cut" in refusal(track_facts(two, template), Limits())


def test_speech_is_told_from_silence_and_from_noise():
    voice = (speech_like(3.0) * 32767).astype(np.int16)
    noise = (augment.noise(48000, np.random.default_rng(0), 0.0) * 1000).astype(np.int16)
    assert speech_facts(voice)["speech"] > 0.15
    assert speech_facts(noise)["speech"] < Limits.min_speech
    assert speech_facts(np.zeros(48000, np.int16))["speech"] == 0
    assert speech_facts(np.zeros(0, np.int16))["speech"] == 0


class DrawnMesh:
    """A tracker for drawn frames: their first pixel says where the face is, or that there is none."""

    def init_state(self):
        return {}

    def track(self, state, image):
        from visavis.facemesh import FaceObservation

        if image[0, 0, 0] > 200:
            return state, None
        return state, FaceObservation(face_points(0.1), 0.98)

    def detect(self, image):
        boxes = np.zeros((2 if image[0, 0, 1] > 200 else 1, 17), np.float32)
        boxes[:, 2:4] = 120
        return boxes


def write_film(path, colour, pcm):
    import av

    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=25, options={"crf": "10"})
        video.width = video.height = FRAME
        video.pix_fmt = "yuv420p"
        sound = file.add_stream("aac", rate=16000, layout="mono") if pcm is not None else None
        image = np.full((FRAME, FRAME, 3), colour, np.uint8)
        for _ in range(40):
            file.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(video.encode())
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(pcm[None], format="flt", layout="mono")
            frame.rate = 16000
            for part in av.AudioResampler("fltp", "mono", 16000).resample(frame):
                file.mux(sound.encode(part))
            file.mux(sound.encode())
    return path


def test_a_film_is_looked_at_once_and_faults_become_reasons(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "_mesh", lambda models: DrawnMesh())
    voice = speech_like(1.6)
    films = {
        "good": write_film(tmp_path / "good.mp4", (90, 90, 90), voice),
        "nobody": write_film(tmp_path / "nobody.mp4", (250, 90, 90), voice),
        "crowd": write_film(tmp_path / "crowd.mp4", (90, 250, 90), voice),
        "mute": write_film(tmp_path / "mute.mp4", (90, 90, 90), None),
        "torn": tmp_path / "torn.mp4",
    }
    films["torn"].write_bytes(b"no film at all" * 100)
    facts = {}
    for name, path in films.items():
        source = survey.Source(str(path), str(tmp_path / "kept" / name), phones=False)
        facts[name] = survey.survey(source)
        assert facts[name]["fresh"]
        again = survey.survey(source)
        assert again.pop("fresh") is False
        assert {k: v for k, v in again.items() if k != "alignment"} == {
            k: v for k, v in facts[name].items() if k != "fresh"
        }
    reasons = {name: refusal(f, Limits()) for name, f in facts.items()}
    assert reasons.pop("good") is None
    words = {"nobody": "no face", "crowd": "several", "mute": "no sound", "torn": "cannot be read"}
    words["torn"] = "torn.mp4"
    for name, word in words.items():
        assert word in reasons[name]
    found = survey.read_survey(tmp_path / "kept" / "good")
    assert found.track.seen.all()
    assert len(found.pictures) == 8
    assert found.pictures[0][:2] == b"\xff\xd8"
    films["good"].write_bytes(films["crowd"].read_bytes())
    source = survey.Source(str(films["good"]), str(tmp_path / "kept" / "good"), phones=False)
    assert survey.survey(source)["fresh"]  # another film under the old name


class LoudnessVoice:
    """Hears loudness alone: the jaw of the toy surveys, in time with the sound."""

    def speak(self, pcm):
        level = np.abs(pcm[:, : pcm.shape[1] // 320 * 320]).reshape(len(pcm), -1, 320).max(2)
        out = np.zeros((*level.shape, 21), np.float32)
        out[..., [CHANNEL["jaw_open"], CHANNEL["jaw_rotation"]]] = level[..., None]
        return out


@pytest.fixture
def toy_folder(tmp_path, monkeypatch):
    """Four films of one talker, two 60 ms late, and one refused; surveys are already there."""
    (tmp_path / "in").mkdir()
    kept = tmp_path / "out" / "survey" / "toy"
    facts = []
    for name, lag in (("a_1.x", 0.0), ("a_22", 60.0), ("a_333", 0.0), ("b_4444", 60.0)):
        (tmp_path / "in" / f"{name}.mp4").touch()
        facts.append(toy_survey(kept, name, lag_ms=lag))
    (tmp_path / "in" / "c_5.mp4").touch()
    silent = np.zeros(48000, np.int16)
    facts.append(toy_survey(kept, "c_5", pcm=silent))
    monkeypatch.setattr(Voice, "load", lambda *_: LoudnessVoice())
    monkeypatch.setattr(prepare, "survey_all", lambda sources, jobs, progress: facts)
    return tmp_path


def test_offsets_given_are_taken_out_and_found_ones_differ_by_what_the_clips_do(toy_folder):
    report = cli.prepare(toy_folder / "in", toy_folder / "out", name="toy", talker="prefix")
    assert report["clips"] == 4
    assert "no speech" in report["refused"]["c_5"]
    found = report["offsets_ms"]
    late = (found["a_22"] + found["b_4444"]) / 2 - (found["a_1.x"] + found["a_333"]) / 2
    assert 20 < late < 70
    path = toy_folder / "offsets.json"
    path.write_text(json.dumps({"*": 0, "a_22": 60}))
    cli.prepare(toy_folder / "in", toy_folder / "out", name="toy", talker="prefix", offsets=path)
    clips = {c.name: c for c in load_corpus(toy_folder / "out", "toy")}
    assert clips["a_22"].meta["offset_ms"] == 60
    assert {c.talker for c in clips.values()} == {"toy_a", "toy_b"}
    sound = np.abs(clips["a_22"].pcm.astype(float)).reshape(-1, 320).max(1)
    jaw = clips["a_22"].motion[:, CHANNEL["jaw_open"]]
    assert np.corrcoef(sound[5:-5], jaw[5:-5])[0, 1] > 0.9
    page = (toy_folder / "out" / "toy.html").read_text()
    for part in ("Refused: 1", "no speech", "a_333", "data:image/jpeg", "data:image/png"):
        assert part in page


def test_shards_hold_the_clips_and_their_pictures(toy_folder):
    out = toy_folder / "out"
    cli.prepare(toy_folder / "in", out, name="toy")
    single = load_corpus(out, "toy")
    rows = {r["name"]: r for r in read_index(out / "shards", "toy")}
    assert set(rows) == {c.name for c in single}
    for clip, again in zip(single, read_shards(out / "shards", "toy"), strict=True):
        assert clip.meta == again.meta
        assert clip.talker == again.talker
        np.testing.assert_array_equal(clip.motion, again.motion)
    assert set(read_pictures(out / "shards", rows["a_1.x"])) == {0, 5, 10}
    assert rows["a_1.x"]["eye_px"] == pytest.approx(70, rel=0.05)
    shutil.rmtree(out / "toy")
    assert [c.name for c in load_corpus(out, "toy")] == [c.name for c in single]
    shard = out / "shards" / rows["a_1.x"]["shard"]
    data = bytearray(shard.read_bytes())
    data[rows["a_1.x"]["offset"] + 4000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match="a_1.x is damaged"):
        list(read_shards(out / "shards", "toy"))


def test_a_full_shard_is_followed_by_another_and_stale_ones_go(tmp_path):
    clip = Clip("c", "k", "t", np.zeros(16000, np.int16))
    data = save_clip(clip, tmp_path).read_bytes()
    names = [f"c{i}.v{i}" + "é" * 60 * (i == 2) for i in range(5)]  # dots, and past USTAR's names
    entries = [Entry(n, data, {}, {"seconds": float(i)}) for i, n in enumerate(names)]
    write_shards(entries, tmp_path / "s", "k", limit=40_000)
    assert sorted(p.name for p in (tmp_path / "s").glob("*.tar")) == [
        f"k-0000{i}.tar" for i in range(3)
    ]
    assert [r["seconds"] for r in read_index(tmp_path / "s", "k")] == [0, 1, 2, 3, 4]
    assert [c.name for c in read_shards(tmp_path / "s", "k")] == names
    write_shards(entries[:1], tmp_path / "s", "k")
    assert [p.name for p in (tmp_path / "s").glob("*.tar")] == ["k-00000.tar"]
    with pytest.raises(InputError, match="no index"):
        read_index(tmp_path / "s", "other")


@pytest.fixture
def sounds(tmp_path):
    folder = tmp_path / "sounds"
    folder.mkdir()
    for i in range(3):
        write_wav(folder / f"{i}-voice.wav", speech_like(1.2, seed=i))
    (folder / "bad.wav").write_bytes(b"RIFF nothing")
    return folder


def digest(out):
    return {p.name: p.read_bytes() for p in sorted((out / "shards").glob("*.tar"))}


@pytest.mark.slow
def test_two_processes_and_one_give_the_same_shards_and_a_second_run_looks_at_nothing(
    sounds, tmp_path
):
    done = []
    for jobs in (1, 2):
        report = cli.prepare(
            sounds, tmp_path / str(jobs), talker="dash", phones=False, jobs=jobs,
            progress=lambda k, n: done.append((k, n)),
        )  # fmt: skip
        assert report["clips"] == 3
        assert set(report["refused"]) == {"bad"}
    assert done == [(k, 4) for k in (1, 2, 3, 4)] * 2
    assert digest(tmp_path / "1") == digest(tmp_path / "2")
    again = cli.prepare(sounds, tmp_path / "1", talker="dash", phones=False)
    assert again["looked_at_now"] == 0
    assert {c.talker for c in load_corpus(tmp_path / "1", "sounds")} == {
        "sounds_0", "sounds_1", "sounds_2",
    }  # fmt: skip


@pytest.mark.slow
def test_a_file_that_kills_its_process_costs_only_itself(sounds, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "survey", deadly)
    sources = [
        survey.Source(str(p), str(tmp_path / "kept" / p.stem), False, phones=False)
        for p in sorted(sounds.iterdir())
    ]
    facts = workers.survey_all(sources, 2)
    assert [bool(f.get("error")) for f in facts] == [False, True, False, True]
    assert "died" in facts[1]["error"]


def deadly(source):
    """Survey, but one of the files ends the process."""
    import os

    if "1-voice" in source.path:
        os._exit(3)
    return survey.survey(source)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_gives_the_same_shards(sounds, tmp_path):
    pytest.importorskip("ray")
    for name, ray in (("local", False), ("ray", True)):
        report = cli.prepare(sounds, tmp_path / name, phones=False, jobs=2, ray=ray)
        assert report["clips"] == 3
    assert digest(tmp_path / "local") == digest(tmp_path / "ray")


def test_without_ray_the_extra_is_named(sounds, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(workers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="scale"):
        workers.survey_all_with_ray([], 1)


def test_two_files_of_one_name_are_refused(sounds, tmp_path):
    write_wav(sounds / "x.wav", speech_like(1.0))
    shutil.copy(sounds / "x.wav", sounds / "x.flac")
    with pytest.raises(InputError, match="one clip"):
        cli.prepare(sounds, tmp_path / "out")


def test_withheld_voices():
    assert is_held_out_talker("103") == is_held_out_talker("ls103")
    held = [n for n in range(1000) if is_held_out_talker(str(n))]
    assert 200 < len(held) < 300
    kept, away = (
        next(v for v in espeak.VARIANTS if is_held_out_talker(f"x+{v}") == w) for w in (False, True)
    )
    pcm = np.zeros(1, np.int16)
    for voice in ("en", "de"):
        assert is_withheld(Clip("n", "espeak", f"{voice}+{away}", pcm))
        assert not is_withheld(Clip("n", "espeak", f"{voice}+{kept}", pcm))
    assert not is_withheld(Clip("n", "presenter", f"en+{away}", pcm))


def test_every_phone_is_of_one_viseme():
    names = " ".join(VISEMES.values()).split()
    assert sorted(names) == sorted(PHONES)
    table = viseme_of_phone()
    assert table[PHONE_INDEX["P"]] == table[PHONE_INDEX["M"]] != table[PHONE_INDEX["F"]]


@pytest.mark.parametrize(
    ("ipa", "names"),
    [
        ("p", "P"), ("ɑː", "AA"), ("aɪ", "AY"), ("tʃ", "CH"), ("ts", "T S"), ("ɔ̃", "AO"), ("ç", "HH"),
        ("ɐ̃ʊ̃", "AH UH"), ("t̪", "T"), ("", ""), ("ʲ", ""), ("ɔːɹ", "AO R"), ("yː", "UW"), ("ˈoʊ", "OW"),
    ],
)  # fmt: skip
def test_ipa_is_mapped_to_the_forty_classes(ipa, names):
    assert espeak.cmu_of(ipa) == names.split()


def test_an_unknown_symbol_is_named_and_phones_share_their_time():
    with pytest.raises(InputError, match="@"):
        espeak.cmu_of("@")
    found = espeak.to_segments([("ts", 0.10), ("ʲ", 0.30), ("", 0.40)], 0.5)
    names = [(PHONES[s.phone], s.start, s.stop) for s in found]
    assert names == [("T", 10, 20), ("S", 20, 30), ("S", 30, 40), ("SIL", 40, 50)]


def test_sentences_are_there_for_nine_languages():
    sentences = espeak.read_sentences()
    assert set(sentences) == set(espeak.VOICES)
    assert all(len(s) == len(set(s)) == 12 for s in sentences.values())


def test_espeak_speaks_with_times_that_fit_the_sound(tmp_path):
    if shutil.which("espeak-ng") is None:
        pytest.skip("needs the program espeak-ng")
    jobs = espeak.plan({"en": ["A pap, a sees."], "de": ["Mama."]}, ("m1",), each=1)
    jobs.append(jobs[0] | {"voice": "nobody-speaks-so", "name": "odd"})
    report = espeak.prepare_espeak(jobs, tmp_path)
    assert report["clips"] == 2
    assert "no voice" in report["refused"]["odd"]
    clip = load_clip(tmp_path / "espeak" / "en-m1-00.safetensors")
    said = [PHONES[p] for p in clip.phones[np.diff(clip.phones, prepend=99) != 0]]
    assert [p for p in said if p in ("P", "S", "Z")] == ["P", "P", "S", "Z"]
    level = np.abs(clip.pcm[: len(clip.phones) * 160].astype(float)).reshape(-1, 160).max(1)
    vowels = np.isin(clip.phones, [PHONE_INDEX[p] for p in ("AE", "IY", "AH", "AA")])
    assert level[vowels].mean() > 4 * level[clip.phones == 0].mean()
    assert espeak.prepare_espeak(jobs[:2], tmp_path)["clips"] == 0  # kept ones are not said again


def test_closures_count_what_is_met_and_what_is_wrong():
    opening = np.full(50, 0.1)
    opening[[10, 11, 30]] = 0.0
    np.testing.assert_array_equal(dips(opening, 0.02), [10, 30])
    np.testing.assert_array_equal(dips(opening, 0.09), [10, 30])  # no more, and no broader
    wanted = [(9, 12), (20, 22)]
    allowed = np.zeros(50, bool)
    allowed[9:12] = allowed[20:22] = True
    judged = np.ones(50, bool)
    np.testing.assert_array_equal(
        closure_counts(opening, wanted, allowed, judged, 0.02), [2, 1, 2, 1]
    )
    judged[30] = False
    np.testing.assert_array_equal(
        closure_counts(opening, wanted, allowed, judged, 0.02), [2, 1, 1, 1]
    )
    counts = {0.01: np.array([10, 5, 5, 5]), 0.03: np.array([10, 9, 10, 6])}
    assert recall_at_precision(counts)["threshold"] == 0.01
    assert recall_at_precision(counts, 0.5)["recall"] == 0.9
    assert runs_of(np.array([1, 0, 1, 1], bool)) == [(0, 1), (2, 4)]


def test_phones_are_scored_at_the_step_they_are_about():
    import torch

    from visavis.models.motion import LOOKAHEAD_STEPS

    class Echo(torch.nn.Module):
        """Names AA where the sound was loud as many steps ago as the look-ahead says."""

        def init_state(self, batch):
            return {}

        def forward(self, features, lookahead, state):
            behind = torch.tensor([float(v) for v in LOOKAHEAD_STEPS.values()])
            steps = int((lookahead[0] * behind).sum())
            loud = (features[:, :, 80] > 0).float()
            loud = torch.roll(loud, steps, dims=1)
            logits = torch.zeros(*loud.shape, 40)
            logits[..., PHONE_INDEX["AA"]] = 10 * (loud - 0.5)
            return None, logits, state

    pcm = np.zeros(32000, np.int16)
    pcm[9600:16000] = (np.sin(np.arange(6400) * 0.1) * 20000).astype(np.int16)
    phones = np.zeros(200, np.uint8)
    phones[60:100] = PHONE_INDEX["AA"]
    clip = Clip("c", "k", "t", pcm, None, phones)
    for ms in LOOKAHEAD_STEPS:
        odds = hearing.phone_odds(Echo(), [clip], ms, hearing.hear([clip]))
        assert odds[0].shape == (100, 40)
        scores = hearing.phone_scores(odds, [clip])
        assert scores["phones"] > 0.95, ms
    off = Clip("c", "k", "t", pcm, None, np.roll(phones, 40))
    assert hearing.phone_scores(odds, [off])["phones"] < 0.7


def test_music_and_coughs_are_sound_of_the_length_asked_for():
    for make in (augment.song, augment.cough):
        x = make(4.0, np.random.default_rng(0))
        assert x.shape == (64000,)
        assert np.isfinite(x).all()
        assert 0.01 < x.std() < 1.0
