"""MVS-Synth: 120 sequences of a video game (GTA V)."""

from vlm3_jax.builders import posed
from vlm3_jax.builders.common import Skip, image, subfolders
from vlm3_jax.builders.readers.numbers import read_json
from vlm3_jax.builders.unreal_stereo4k import right_handed
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.records import DepthMap

METRES_PER_UNIT = 0.1
"""MapAnything and MoGe divide by 10, judged by the sizes of cars and people; CUT3R does not; the authors never said."""
RENDERED = (1920, 1080)
"""All sizes were made from this one, in which pixels are square."""


class MvsSynth(posed.PairBuilder):
    """poses/*.json: extrinsic (world-to-camera), f_x, f_y, c_x, c_y; depths/*.exr: z, infinite in the sky.

    The camera is OpenCV's, the world left-handed, so stored rotations have determinant -1; it is mirrored in y. The
    f_x of GTAV_540 (810x540, not 16:9) is wrong: there it is what f_y and the size say, and the principal point the
    middle.
    No hold-out was published: one sequence in 20. The largest size that is there is read.
    """

    name, title = "mvs_synth", "MVS-Synth"
    splits, held_out = ("train", "val"), "val"
    layout = "[GTAV_{1080,720,540}/]<0000>/{images/%04d.png, depths/%04d.exr, poses/%04d.json}"
    labels = "z-depth and poses, 0.1 m a unit; pairs within 16 frames"
    licence = "for research; phuang17.github.io/DeepMVS/mvs-synth.html"
    doubts = ("0.1 m a unit", posed.HALF_A_PIXEL, "c_x and c_y of GTAV_540, which are not read")
    test = "tests/builders/test_mvs_synth.py"
    needs = ("OpenEXR",)

    def scenes(self, raw, split):
        """Folders of four digits, of the largest release that is there."""
        sizes = [f"GTAV_{n}" for n in (1080, 720, 540) if (raw / f"GTAV_{n}").is_dir()]
        folder = raw / sizes[0] if sizes else raw
        names = [f.name for f in subfolders(folder, "folders such as 0000") if f.name.isdigit()]
        if not names:
            raise UserError(f"{folder}: expected folders such as 0000 in it")
        for name in names:
            if posed.one_in(name, 20) == (split == "val"):
                files = sorted(path.name[:-4] for path in (folder / name / "images").glob("*.png"))
                yield name, [{"key": file, "folder": f"{sizes[0]}/{name}" if sizes else name} for file in files]

    def frame(self, raw, scene, data):
        """Image, camera and depth of a frame."""
        folder, key, name = posed.below(raw, data["folder"]), data["key"], f"{scene}/{data['key']}"
        tree = read_json(posed.contents(folder / "poses" / f"{key}.json"), f"{name}.json")
        photo = image(folder / "images" / f"{key}.png", f"{name}.png")
        path = folder / "depths" / f"{key}.exr"
        if not path.exists():
            raise Skip("a frame has no file in depths")
        depth = DepthMap(photo.width, photo.height, METRES_PER_UNIT, "z", name=f"{name}.exr", path=path).load()
        try:
            fx, fy, cx, cy = (float(tree[part]) for part in ("f_x", "f_y", "c_x", "c_y"))
            pose = right_handed(posed.inverse(tree["extrinsic"], name))
        except (KeyError, TypeError, ValueError) as error:
            raise BadRecord(f"{name}.json: no extrinsic, f_x, f_y, c_x, c_y ({error})") from None
        stretch = photo.width / RENDERED[0] * RENDERED[1] / photo.height
        if abs(stretch - 1) > 0.01:
            fx, cx, cy = fy * stretch, photo.width / 2, photo.height / 2
        pose[:3, 3] *= METRES_PER_UNIT
        camera = posed.camera(fx, fy, cx, cy, photo, first=0.5)
        return posed.PosedFrame(photo, camera, pose, depth)
