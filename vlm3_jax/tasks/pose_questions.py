"""The questions of the pose task: the release's, and four more wordings of each that training draws from.

The release trained on several wordings that it does not give. What the answer must follow (axes, order, signs) stands
in every one.
"""

_CONVENTIONS = (
    "  Conventions: yaw is rotation about the vertical (down) axis, positive = turn right; pitch is about the lateral "
    "(right) axis after yaw, positive = look up; roll is about the optical (forward) axis after yaw and pitch, "
    "positive = bank to the right (image content rotates clockwise from the operator's POV)."
)

# By kind; the first wording is the release's.
QUESTIONS = {
    "rotation_angle": (
        "Given these two images captured from different viewpoints, what is the relative rotation angle (in degrees) "
        "between the two camera poses?",
        "By what angle, in degrees, is the camera of the second image rotated relative to the camera of the first?",
        "These two images show one scene from two viewpoints. How many degrees of rotation lie between the two camera "
        "poses?",
        "Report the angle, in degrees, of the rotation that turns the first camera into the orientation of the second.",
        "What is the total rotation of the camera, as one angle in degrees, from the first image to the second?",
    ),
    "euler_natural": tuple(
        opening + _CONVENTIONS
        for opening in (
            "Treating the first image as the reference viewpoint, describe the camera's reorientation needed to reach "
            "the second image's viewpoint as yaw, pitch and roll about the first camera's local axes, applied "
            "intrinsically in the order yaw -> pitch -> roll.",
            "Give the rotation from the first camera to the second as intrinsic yaw, pitch and roll about the first "
            "camera's local axes, in the order yaw -> pitch -> roll.",
            "How must the camera of the first image turn to look as the camera of the second does? Answer with yaw, "
            "pitch and roll about its own axes, applied intrinsically in the order yaw -> pitch -> roll.",
            "Express the orientation of the second view relative to the first as yaw, pitch and roll, applied "
            "intrinsically in the order yaw -> pitch -> roll about the first camera's local axes.",
            "With the first image as reference, what yaw, pitch and roll (intrinsic, in the order yaw -> pitch -> "
            "roll, about the first camera's local axes) lead to the second image's viewpoint?",
        )
    ),
    "translation_direction": (
        "Where did the camera move, expressed in the first camera's local frame (X right, Y down, Z forward)?  Give a "
        "qualitative direction and the precise unit direction vector (x, y, z).",
        "In which direction did the camera move between the two images? Use the first camera's local frame (X right, Y "
        "down, Z forward), and give a qualitative direction and the unit direction vector (x, y, z).",
        "Seen from the first camera (X right, Y down, Z forward), where is the second one? Describe the direction in "
        "words and as a unit vector (x, y, z).",
        "Describe the camera's translation from the first image to the second in words, and give its unit vector (x, "
        "y, z) in the first camera's frame (X right, Y down, Z forward).",
        "Which way was the camera carried from the first viewpoint to the second? Name the direction and give the unit "
        "vector (x, y, z) in the first camera's local frame (X right, Y down, Z forward).",
    ),
    "translation_distance": (
        "Estimate the magnitude of the camera translation between the two viewpoints.",
        "How far did the camera move between the two images?",
        "What is the distance between the two camera positions?",
        "How far apart are the viewpoints of the first and the second image?",
        "Give the length of the camera's translation from the first image to the second.",
    ),
}
