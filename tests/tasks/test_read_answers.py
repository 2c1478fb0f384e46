"""Answers as people and models write them, by kind: what our rules read in each (docs/conventions.md).

None is an unread answer: counted as a parse failure, never taken for another number.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from records_for_tests import random_record

from vlm3_jax import tasks
from vlm3_jax.tasks import protocol

D, C = ("depth", None), ("correspondence", None)
CT = ("correspondence", {"coords": [100, 200], "coord_range": 1000})
Q, H = ("objects", {"kind": "quantity"}), ("objects", {"kind": "direction"})
A, E, V, L = (
    ("pose", {"kind": kind})
    for kind in ("rotation_angle", "euler_natural", "translation_direction", "translation_distance")
)
# fmt: off
CASES = [
    # Thousands separators.
    (D, '12,345.67 m', 12345.67), (D, '1,234,567 m', 1234567), (D, '1 234.5 m', 1234.5),
    (D, '1\u202f234,5 m', 1234.5), (D, "1'234.5 m", 1234.5), (D, '1.234,5 m', 1234.5), (D, '1.234.567 m', 1234567),
    (D, '1_234 m', 1234), (D, '<answer>1,234</answer>', 1234), (L, '1\xa0234 meters', 1234), (D, '12,34,567 m', None),
    (D, '1,23,4 m', None), (D, '<answer>1.2.3</answer>', None), (C, '(1,234, 1,500)', (1234, 1500)),
    (C, '(1,234; 56)', (1234, 56)), (C, '(1 234, 56)', (1234, 56)), (A, '1,234 degrees', 1234),
    (C, '(1.234,5; 2)', (1234.5, 2)), (D, '-1,234.5 m', -1234.5), (D, '+1,234.5 m', 1234.5),
    (D, '1,234.5e1 m', 12345),
    # Decimal commas.
    (D, '0,5 m', 0.5), (D, '0,500 m', 0.5), (Q, '12,75 meters', 12.75), (D, '3,5 Meter', 3.5), (D, '≈3,5 m', 3.5),
    (A, '31,4 degrees', 31.4), (A, '31,4°', 31.4), (C, '(3,5; 4,25)', (3.5, 4.25)), (C, '(3,5, 4,25)', (3.5, 4.25)),
    (V, '−0,62; +0,03; +0,78', (-0.62, 0.03, 0.78)), (V, '(-0,62,+0,03,+0,78)', (-0.62, 0.03, 0.78)),
    (E, '+12,3, -4,5, +0,6', (12.3, -4.5, 0.6)), (D, '1234,567 m', 1234.567), (D, '2,3', 2.3), (Q, '2,3', 2.3),
    (D, '<answer>3, 5</answer>', None),
    # Units.
    (D, '350 cm', 3.5), (D, '3500mm', 3.5), (Q, '3500 millimeters', 3.5), (D, '3.5 kilometres', 3500),
    (D, '10 ft', 3.048), (D, '10ft.', 3.048), (Q, '3 yards', 2.7432), (Q, '2 yd', 1.8288), (D, '1 mile', 1609.344),
    (D, '36 inches', 0.9144), (D, '36"', 0.9144), (D, '36 in', 0.9144), (L, '36in.', 0.9144), (D, '6 \u2032', 1.8288),
    (D, '6\u2032', 1.8288), (Q, '5\u20323\u2033', 1.6002), (D, '5 ft 3 in', 1.6002), (Q, '5ft3in', 1.6002),
    (Q, '5 feet, 3 inches', 1.6002), (Q, '5\'-3"', 1.6002), (Q, '5\' 3"', 1.6002), (Q, "5'3", 1.6002),
    (Q, '6 ft. 2 in.', 1.8796), (Q, 'It is 6 ft. tall.', 1.8288),
    (Q, '5 ft 3', 1.6002), (Q, '5\' 3 1/2"', 1.6129), (Q, '2m30cm', 2.3), (Q, '2 m, 30 cm', 2.3),
    (L, '2 m and 30 cm', 2.3), (D, '1 km 200 m', 1200), (Q, '1 yard 2 feet', 1.524), (Q, '3 m 5 cm 2 mm', 3.052),
    (D, '3.5 meters (350 cm)', 3.5), (D, '3.5 m (11.5 ft)', 3.5), (D, '11.5 ft (3.5 m)', 3.5052),
    (D, '3.5-meter', 3.5), (D, '3.5 [m]', 3.5), (D, '3.5 (meters)', 3.5), (D, '3.5 m²', None), (D, '3.5 m^2', None),
    (D, '3.5 m/s', None), (D, '3.5 mph', None), (D, '3.5 square meters', None), (D, '35 pixels', None),
    (D, '<answer>35 pixels</answer>', None), (D, '<answer>35px</answer>', None), (D, '<answer>20°</answer>', None),
    (D, '<answer>20 degrees</answer>', None), (D, '<answer>50%</answer>', None), (A, '31 meters', None),
    (D, 'Distance (cm): 350', 3.5), (D, 'Distance in centimeters: 350', 3.5),
    (D, '<answer>Distance (m): 3.5</answer>', 3.5), (D, '10 dm', 1),
    # Fractions.
    (Q, '½ m', 0.5), (Q, '5½ feet', 1.6764), (Q, '5 ½ ft', 1.6764), (Q, '5-1/2 feet', 1.6764), (Q, '3/4 meter', 0.75),
    (Q, '1/0 m', None), (Q, '5 and 1/2 feet', 1.6764), (Q, '3\u20444 m', 0.75), (D, '10/12/2024', None),
    (D, '2 1/2 m', 2.5), (Q, '1/3 of a meter', None),
    # Numbers in words.
    (Q, 'two meters', 2), (Q, 'half a meter', 0.5), (Q, 'two and a half meters', 2.5),
    (D, 'one and a half meters', 1.5), (Q, 'a meter and a half', 1.5), (Q, 'two meters and a half', 2.5),
    (Q, '3 and a half meters', 3.5), (Q, 'five feet three inches', 1.6002), (Q, 'five feet 3 inches', 1.6002),
    (Q, 'twenty-five centimeters', 0.25), (Q, 'three quarters of a meter', 0.75), (Q, 'two point five meters', 2.5),
    (Q, 'a hundred meters', 100), (Q, 'one hundred and five meters', 105), (D, 'two hundred meters', 200),
    (D, 'two or three meters', 2.5), (D, 'between two and three meters', 2.5), (D, '1.5 thousand meters', 1500),
    (Q, 'two', None), (Q, 'a few meters', None), (D, 'several meters', None), (A, 'thirty degrees', 30),
    (Q, 'a foot and 3 inches', 0.381), (D, 'zero point five meters', 0.5), (D, 'one meter', 1),
    (D, 'half of a meter', 0.5), (D, 'a quarter of a meter', 0.25),
    # Ranges and tolerances.
    (Q, '2 to 3 meters', 2.5), (Q, 'between 2 and 3 meters', 2.5), (D, '2–3 m', 2.5), (D, '2 - 3 m', 2.5),
    (D, '2\u20143 m', 2.5), (D, '2~3 m', 2.5), (D, '2 or 3 m', 2.5), (D, 'from 2 m to 3 m', 2.5),
    (D, '2 m to 3 m', 2.5), (D, '2m-3m', 2.5), (L, 'between 2 meters and 3 meters', 2.5),
    (D, 'between about 2 and 3 m', 2.5), (D, '3.5 ± 0.2 m', 3.5), (D, '3.5 m ± 0.2 m', 3.5),
    (D, '3.5 +/- 0.2 m', 3.5), (D, '3.5±0.2', 3.5), (D, '<answer>3.5±0.2</answer>', 3.5),
    (D, '<answer>3.5-4.0</answer>', 3.75), (D, '3.5-4.0', 3.75), (Q, '2 x 3 m', None), (Q, '2 m x 3 m', None),
    (Q, '2 × 3 meters', None), (A, '30-40 degrees', 35), (Q, '5 ft 3 in to 5 ft 5 in', 1.6256),
    (Q, '90 cm to 1.1 m', 1.0), (E, 'Yaw=10-12°, Pitch=1°, Roll=0°', (11, 1, 0)), (D, '10-12-14 m', None),
    (C, '(12-14, 34)', None), (Q, '1.5 to 2 feet', 0.5334), (D, '2 -3 meters', 2.5), (D, '-3.5 m', -3.5),
    # Hours.
    (H, '2.5 o’clock', 3), (H, "2:30 o'clock", 3), (H, "2-3 o'clock", 3), (H, "between 2 and 3 o'clock", 3),
    (H, "2 or 3 o'clock", 3), (H, "11 to 1 o'clock", 12), (H, "12-1 o'clock", 1), (H, '3 o‘clock', 3),
    (H, '3 o\u02bcclock', 3), (H, '3 o\u2032clock', 3), (H, '3 o\xb4clock', 3), (H, '3 o`clock', 3),
    (H, '3 o&#39;clock', 3), (H, '3 oclock', 3), (H, "3 O'Clock", 3), (H, "3-o'clock", 3), (H, "**3 o'clock**", 3),
    (H, 'three o’clock', 3), (H, "3:00 o'clock", 3), (H, '3:00', 3), (H, "13 o'clock", None), (H, "0 o'clock", None),
    (H, "12.5 o'clock", 1), (H, "2.2 o'clock", 2), (H, "2,5 o'clock", 3), (H, '\uff12 o\u2019clock', 2),
    (H, "At 10 o'clock.", 10),
    (H, "Seen from A, with 12 o'clock pointing away from the viewer, B is at 3 o'clock.", 3),
    (H, "Seen from bounding box region (1, 2, 3, 4), bounding box region (5, 6, 7, 8) is at 11 o'clock.", 11),
    (H, "half past 2 o'clock", 3), (H, "approximately 4 o'clock", 4), (H, '4', 4), (H, '<answer>4</answer>', 4),
    (H, "<answer>4 o'clock</answer>", 4), (H, "-3 o'clock", None), (H, 'The answer is 4.', 4),
    (H, "1/2 o'clock", None),
    # Markup.
    (D, '**3.5 m**', 3.5), (D, '**3.5** meters', 3.5), (D, '*3.5* m', 3.5), (D, '__3.5 m__', 3.5),
    (D, '`3.5 m`', 3.5), (D, '\\(3.5\\,\\text{m}\\)', 3.5), (D, '$3.5$ m', 3.5), (D, '$3.5\\ \\mathrm{m}$', 3.5),
    (D, '\\boxed{3.5}', 3.5), (D, '<answer>\\boxed{3.5}</answer>', 3.5), (D, '$\\boxed{3.5\\text{ meters}}$', 3.5),
    (A, '\\(31.4^\\circ\\)', 31.4), (A, '$31.4^{\\circ}$', 31.4), (D, '\\(1{,}234.5\\) m', 1234.5),
    (D, '\\(3.5 \\times 10^{2}\\) m', 350), (D, '\\frac{1}{2} m', 0.5), (Q, '5\\frac{1}{2} ft', 1.6764),
    (D, '<b>3.5</b> m', 3.5), (D, '3.5&nbsp;m', 3.5), (D, '3.5~m', 3.5), (D, '~3.5 m', 3.5), (D, '~3.5', 3.5),
    (C, '\\(\\left(12, 34\\right)\\)', (12, 34)), (C, '**(12, 34)**', (12, 34)), (C, '`(12, 34)`', (12, 34)),
    (C, '$(12, 34)$', (12, 34)), (C, '(**12**, **34**)', (12, 34)),
    (E, '**Yaw**: 12.3°, **Pitch**: -4.5°, **Roll**: 0.6°', (12.3, -4.5, 0.6)),
    (E, '$Yaw=+12.3^\\circ$, $Pitch=-4.5^\\circ$, $Roll=+0.6^\\circ$', (12.3, -4.5, 0.6)),
    (E, '- Yaw: +12.3°\n- Pitch: -4.5°\n- Roll: +0.6°', (12.3, -4.5, 0.6)),
    # Other scripts.
    (D, '\uff13\uff0e\uff15 m', 3.5), (D, '\uff13.\uff15\uff4d', 3.5),
    (C, '\uff08\uff11\uff12\uff0c\uff13\uff14\uff09', (12, 34)), (D, '\uff0d\uff13.5 m', -3.5),
    (V, '(\u22120.62, \uff0b0.03, \uff0b0.78)', (-0.62, 0.03, 0.78)),
    (E, 'Yaw=\u221212.3\xba, Pitch=\u20114.5\u02da, Roll=+0.6\xb0', (-12.3, -4.5, 0.6)), (D, '350\u339d', 3.5),
    (D, '3.5\u200b m', 3.5), (D, '3\u2009500 m', 3500), (D, '٣٫٥ m', 3.5),
    # Powers of ten.
    (D, '3.5e0 m', 3.5), (D, '3.5 × 10^0 m', 3.5), (D, '3.5 x 10^2 m', 350), (D, '3.5*10^2 m', 350),
    (D, '3.5·10² m', 350), (D, '10^2 m', 100), (D, '3.5\xd710\u207b\xb9 m', 0.35), (D, '<answer>3.5e1</answer>', 35),
    (D, '3.5E+1 m', 35), (D, '1e10 m', None), (D, '<answer>1e10</answer>', None), (D, "9" * 400 + " m", None),
    # Echoes of the question.
    (C, 'The pixel (100, 200) corresponds to (12, 34).', (12, 34)), (C, '(100, 200) -> (12, 34)', (12, 34)),
    (C, '(100, 200) → (12, 34)', (12, 34)),
    (C, 'Pixel (100, 200) of image one is at (12, 34) in image two.', (12, 34)),
    (C, 'In the first image, the point is at (100, 200). In the second image, it is at (12, 34).', (12, 34)),
    (C, 'The corresponding pixel for (100, 200) is (12, 34).', (12, 34)),
    (C, 'The corresponding pixel is (12, 34).', (12, 34)),
    (C, '(12, 34) in the second image corresponds to (100, 200) in the first image', (12, 34)),
    (C, 'The pixel (100, 200) in the first image is not visible in the second image.', None),
    (CT, '(100, 200) and (12, 34)', (12, 34)), (CT, '(100, 200)', (100, 200)),
    (CT, '(12, 34) matches (100, 200)', (12, 34)), (C, 'In normalised [0, 1000]: (12, 34)', (12, 34)),
    (C, 'The coordinates in the range [0, 1000] are (12, 34)', (12, 34)),
    (C, 'The point at (100, 200) in image 1 maps to (12, 34) in image 2', (12, 34)), (C, '[12, 34]', (12, 34)),
    (C, '{"point_2d": [12, 34]}', (12, 34)), (C, '12, 34', (12, 34)), (C, '12,34', (12, 34)),
    (C, '(12 , 34)', (12, 34)), (C, '(12.5, 34.5)', (12.5, 34.5)), (C, '(12px, 34px)', (12, 34)),
    (C, '(x, y) = (12, 34)', (12, 34)), (C, '<answer>(12, 34)</answer>', (12, 34)),
    (C, '<answer>12, 34</answer>', (12, 34)),
    (C, 'Given (100, 200) in the first image, the answer is (12, 34).', (12, 34)), (C, '(1, 2, 3)', None),
    (C, '(1, 2, 3, 4)', None),
    (C, 'For pixel (100, 200) in the first image, the corresponding pixel in the second image is (12, 34).', (12, 34)),
    (C, 'Pixel (100, 200) in the first image matches pixel (12, 34) in the second image.', (12, 34)),
    (C, 'The match of first image pixel (100, 200) is second image pixel (12, 34)', (12, 34)),
    (D, 'The point at coordinates (1003, 512) is 3.5 meters away', 3.5), (D, 'The depth at [100, 200] is 3.5m.', 3.5),
    (D, '<answer>(100, 200): 3.5</answer>', 3.5), (D, '<answer>(100, 200)</answer>', None),
    (D, '<answer>at 100, 200 it is 3.5</answer>', None),
    (Q, 'The width of bounding box region (1, 2, 3, 4) is 45.00 inches.', 1.143), (Q, 'Region [0] is 3 m wide', 3),
    (D, '<answer>Region 1 is 3.5</answer>', 3.5),
    # Angles.
    (E, 'yaw: 0.21, pitch: -0.1, roll: 0.05 (radians)', (12.0321136977, -5.7295779513, 2.8647889757)),
    (E, 'yaw: 0.21, pitch: -0.1, roll: 0.05 rad', (12.0321136977, -5.7295779513, 2.8647889757)),
    (E, '(0.21, -0.1, 0.05) rad', (12.0321136977, -5.7295779513, 2.8647889757)), (A, '0.55 rad', 31.5126787322),
    (A, '0.55 radians', 31.5126787322), (A, '31.4 degrees (0.548 rad)', 31.4), (A, 'π/4 rad', None),
    (E, 'yaw: 0.21 rad, pitch: -4.5°, roll: 0.6', None),
    (E, 'yaw: 0.21 rad, pitch: -4.5°, roll: 0.6°', (12.0321136977, -4.5, 0.6)), (A, '0.1π rad', None),
    (E, 'yaw=0.1π, pitch=0, roll=0', None), (A, 'in radians: 0.55', 31.5126787322), (A, "12°30'", 12.5),
    (E, '(yaw, pitch, roll) = (12.3, -4.5, 0.6)', (12.3, -4.5, 0.6)),
    (E, 'yaw, pitch, roll = 12.3, -4.5, 0.6', (12.3, -4.5, 0.6)),
    (E, 'The yaw is +12.3°, the pitch is -4.5° and the roll is 0.6°.', (12.3, -4.5, 0.6)),
    (E, '{"yaw": 12.3, "pitch": -4.5, "roll": 0.6}', (12.3, -4.5, 0.6)),
    (E, 'Yaw = - 4.5°, Pitch = 1°, Roll = 2°', (-4.5, 1, 2)),
    (E, 'Yaw (turn right): 12.3°, Pitch (look up): -4.5°, Roll: 0.6°', (12.3, -4.5, 0.6)),
    (E, 'yaw≈12.3°, pitch≈-4.5°, roll≈0.6°', (12.3, -4.5, 0.6)), (E, 'yaw=1,pitch=2,roll=3', (1, 2, 3)),
    (E, '(+12.3°, -4.5°, +0.6°)', (12.3, -4.5, 0.6)), (E, 'Yaw=±3°, Pitch=1°, Roll=2°', None),
    (A, '0.548 rad (31.4°)', 31.3980871732), (A, 'about 31 deg', 31), (A, '31.4', 31.4), (A, '31.4 degs', 31.4),
    (E, 'yaw -> pitch -> roll: 1, 2, 3', (1, 2, 3)),
    # Repetitions and corrections.
    (D, '3.5 m. No wait, 4.0 m.', 4), (D, 'It is 3 m. Actually, it is 4 m.', 4),
    (D, '<answer>3.5</answer><answer>4.0</answer>', 3.5), (D, '<answer>3.5</answer>\n<answer>3.5</answer>', 3.5),
    (D, '3.5 meters. 3.5 meters. 3.5 meters.', 3.5), (D, 'not 3 m but 4 m', 4),
    (D, '<answer>3.5 m, no, wait, 4.0 m</answer>', 4), (C, '(12, 34). Sorry, (56, 78).', (56, 78)),
    (D, '<answer>3.5</answer> Wait, <answer>4.0</answer>', 4), (D, '3.5 m, correction: 4.0 m', 4),
    (H, "3 o'clock. Actually, 4 o'clock", 4),
    # Bare numbers and what is no answer.
    (D, 'about 3.5', 3.5), (D, 'The answer is 3.5.', 3.5), (D, 'Answer: 3.5', 3.5), (D, 'approximately 3.5 m', 3.5),
    (D, '> 3 m', 3), (D, '<3 m', 3), (D, 'less than 3 m', 3), (D, 'roughly 3.5 metres or so', 3.5), (D, '"3.5"', 3.5),
    (D, "'3.5'", 3.5), (D, '"3.5 m"', 3.5), (D, 'reasoning 5 m </think> 3.5 m', 3.5),
    (D, '<think>5 m</think>3.5', 3.5), (D, '<Answer>3.5</Answer>', 3.5), (D, '3.5\nmeters', 3.5),
    (D, 'I see 3 chairs', None), (D, '<answer>3 chairs</answer>', None), (D, '<answer>1st: 3.5</answer>', 3.5),
    (D, '3.5 m.', 3.5), (D, 'd=3.5m', 3.5), (D, '=3.5 m', 3.5), (D, '3.5 M', 3.5),
    (D, '3.5 meters away, 95% sure', 3.5), (D, '95% sure it is 3.5 m', 3.5), (D, 'nan', None), (D, 'inf m', None),
    (D, '<answer>NaN</answer>', None), (D, '', None), (D, '<answer></answer>', None), (D, '<answer>3.5 m', 3.5),
    (D, '3.5m away from (100,200)', 3.5), (D, '<answer>1.2.3</answer> 3.5 m', None),
    # All of these, mixed.
    (D, 'The depth at the point is 1,234.56 meters.', 1234.56), (D, 'about 1,200 m', 1200),
    (D, '$1,234.5$ m', 1234.5), (D, '1,234.5', 1234.5), (C, '(1,234.5, 56.5)', (1234.5, 56.5)),
    (L, 'Translation distance: 1,234.50 meters', 1234.5), (A, 'Rotation angle: 1,5 degrees', 1.5),
    (L, 'Translation distance: 1,23 meters', 1.23), (Q, 'The distance is 12.345,67 m', 12345.67),
    (V, 'unit vector (-0,62; 0,03; 0,78)', (-0.62, 0.03, 0.78)),
    (V, 'The camera moves left, forward, unit vector (-0,62, +0,03, +0,78).', (-0.62, 0.03, 0.78)),
    (V, '(-.62, .03, .78)', (-0.62, 0.03, 0.78)), (V, '(-0.62 , +0.03 , +0.78)', (-0.62, 0.03, 0.78)),
    (V, '[-0.62, 0.03, 0.78]', (-0.62, 0.03, 0.78)), (V, '<-0.62, 0.03, 0.78>', (-0.62, 0.03, 0.78)),
    (V, 'x=-0.62, y=0.03, z=0.78', None), (V, '(0, 0, 1)', (0, 0, 1)), (V, '(0,0,1)', (0, 0, 1)),
    (V, '0,0,1', (0, 0, 1)), (V, '(1e-3, 2e-1, 9.8e-1)', (0.001, 0.2, 0.98)),
    (V, '( - 0.62, + 0.03, + 0.78 )', (-0.62, 0.03, 0.78)),
    (V, '\\begin{pmatrix} -0.62 \\\\ 0.03 \\\\ 0.78 \\end{pmatrix}', None),
    (V, '\\((-0.62, +0.03, +0.78)\\)', (-0.62, 0.03, 0.78)), (V, '(-0.62,0.03,0.78)', (-0.62, 0.03, 0.78)),
    (Q, '6 ft 2', 1.8796), (Q, "6'2”", 1.8796), (Q, '6’ 2’’', 1.8796), (Q, '6 foot 2 inches', 1.8796),
    (Q, '6 foot 2', 1.8796), (Q, '2 yards 1 foot 6 inches', 2.286), (Q, '1m 80cm', 1.8), (Q, '1 m 80', 1.8),
    (D, '3 meters 50', 3.5), (D, 'The distance \u20143.5 m', 3.5), (D, 'it is\u20143.5 m', 3.5),
    (Q, '3 meters, 50 centimeters', 3.5), (Q, '0.5 m (50 cm or 19.7 inches)', 0.5), (Q, '12 inches (1 foot)', 0.3048),
    (Q, '12in', 0.3048), (Q, '12 in tall', 0.3048), (Q, '12-inch', 0.3048), (Q, 'a 12-inch gap', 0.3048),
    (Q, 'The width is 12 in.', 0.3048), (Q, '5 in the foreground and 3 m', 3), (Q, '4.5 CM', 0.045),
    (Q, '4,5 cm', 0.045), (Q, '1,200 mm', 1.2), (Q, '5 feet and 3.5 inches', 1.6129),
    (Q, '5 feet 3 1/2 inches', 1.6129), (Q, '5 ¾ inches', 0.14605), (Q, '3¼"', 0.08255), (Q, '7\u215d in', 0.193675),
    (Q, '3 1/4 in', 0.08255), (Q, '1.5 ft', 0.4572), (D, '0.25 miles', 402.336), (D, '2 mi', 3218.688),
    (Q, '200 µm', None), (Q, '3 nm', None), (D, '3 light years', None), (Q, '12 pt', None),
    (D, 'between 3 m and 4 m', 3.5), (D, 'between 3.5 and 4 meters away', 3.75), (D, '3.5m–4m', 3.75),
    (D, '3.5 m to 4.0 m', 3.75), (D, 'anywhere from 3 to 4 meters', 3.5), (D, 'approximately 3.5 – 4.0 meters', 3.75),
    (D, '3 to 4', 3.5), (D, '<answer>3 to 4</answer>', 3.5), (D, '<answer>between 3 and 4</answer>', 3.5),
    (D, '<answer> 3 - 4 meters </answer>', 3.5), (Q, '10-15 cm', 0.125), (Q, '2-3 feet', 0.762),
    (Q, '3.5-4.0m', 3.75), (Q, '3m - 350cm', 3.25), (H, "5 to 6 o'clock", 6), (H, '5 or 6 o’clock', 6),
    (H, "between 10 and 11 o'clock", 11), (H, "12 to 1 o'clock", 1), (H, "11 o'clock to 12 o'clock", 12),
    (H, "11:30 o'clock", 12), (H, "12:30 o'clock", 1), (H, "3.0 o'clock", 3), (H, "2.4 o'clock", 2),
    (H, "2½ o'clock", 3), (H, "2 1/2 o'clock", 3), (H, "two and a half o'clock", 3), (H, "2.5-o'clock", 3),
    (H, "o'clock: 3", None), (H, "3 o''clock", None), (H, '3 o " clock', None), (H, '3 O’CLOCK', 3),
    (H, '**3** o’clock', 3), (H, "\\(3\\) o'clock", 3), (H, '\uff13 o\u2019clock', 3),
    (D, 'The point at pixel [100,200] is about 3.5m from the camera.', 3.5), (D, 'At (100, 200), depth = 3.5', 3.5),
    (D, '<answer>depth at (100, 200) = 3.5</answer>', 3.5), (D, '<answer>x=100, y=200: 3.5 m</answer>', 3.5),
    (D, '<answer>100, 200, 3.5</answer>', None), (D, '<answer>(100,200) 3.5</answer>', 3.5),
    (D, '(1003, 512): 3.5 meters', 3.5), (D, '<answer>point (100,200) → 3.5</answer>', 3.5),
    (D, '<answer>3.5 meters at (100, 200)</answer>', 3.5), (C, '(100, 200) corresponds to (12, 34)', (12, 34)),
    (C, '(100,200)→(12,34)', (12, 34)),
    (C, 'The pixel at (100, 200) in image A is located at (12, 34) in image B.', (12, 34)),
    (C, 'Given pixel (100, 200), the matching pixel is (12, 34).', (12, 34)),
    (C, 'The pixel (100, 200) of the first picture is seen at (12, 34).', (12, 34)),
    (C, '(100, 200) in the first image and (12, 34) in the second image', (12, 34)),
    (C, 'First image: (100, 200). Second image: (12, 34).', (12, 34)),
    (C, 'Image 1: (100, 200)\nImage 2: (12, 34)', (12, 34)), (C, 'Query: (100, 200)\nAnswer: (12, 34)', (12, 34)),
    (C, 'Answer: (12, 34) (query was (100, 200))', (12, 34)),
    (C, 'The corresponding pixel in the second image for pixel (100, 200) in the first image is (12, 34).', (12, 34)),
    (C, 'pixel (100, 200) in the first image', None), (CT, 'pixel (100, 200) in the first image', None),
    (CT, 'It stays at (100, 200).', (100, 200)), (CT, 'The pixel (100, 200) stays at (100, 200).', (100, 200)),
    (C, 'from (100, 200) to (12, 34)', (12, 34)), (C, '(12.0, 34.0)', (12, 34)), (C, '(12; 34)', (12, 34)),
    (C, '(012, 034)', (12, 34)),
    (C, 'The point is at (12, 34) in the second image, which matches (100, 200) in the first.', (12, 34)),
    (C, 'The answer is (12, 34). The pixel (100, 200) was asked.', (12, 34)),
    (E, 'Yaw=+0.21rad, Pitch=-0.08rad, Roll=+0.01rad', (12.0321136977, -4.583662361, 0.5729577951)),
    (E, 'yaw = 0.21 radians; pitch = -0.08 radians; roll = 0.01 radians', (12.0321136977, -4.583662361, 0.5729577951)),
    (A, 'Rotation angle: 0.5 rad', 28.6478897565),
    (E, '(in rad) yaw=0.21, pitch=-0.08, roll=0.01', (12.0321136977, -4.583662361, 0.5729577951)),
    (E, 'Yaw [rad]: 0.21, Pitch [rad]: -0.08, Roll [rad]: 0.01', (12.0321136977, -4.583662361, 0.5729577951)),
    (E, 'Yaw (deg): 12.3, Pitch (deg): -4.5, Roll (deg): 0.6', (12.3, -4.5, 0.6)), (A, '500 mrad', None),
    (A, '0.5 revolutions', None), (E, 'yaw 12 deg 30 min', None),
    (E, 'Yaw=+12.3deg, Pitch=-4.5deg, Roll=+0.6deg', (12.3, -4.5, 0.6)),
    (E, 'Yaw: 12.3 degrees\nPitch: -4.5 degrees\nRoll: 0.6 degrees', (12.3, -4.5, 0.6)),
    (E, 'yaw is approximately 12.3°, pitch is around -4.5°, and roll is about 0.6°', (12.3, -4.5, 0.6)),
    (E, 'Yaw +12.3°, Pitch −4.5°, Roll +0.6°', (12.3, -4.5, 0.6)),
    (E, 'Yaw=+12.3° Pitch=-4.5° Roll=+0.6°', (12.3, -4.5, 0.6)), (E, 'Yaw=+12.3°, Pitch=-4.5°', None),
    (E, 'roll=0.6, pitch=-4.5, yaw=12.3', (12.3, -4.5, 0.6)), (E, 'Yaw=1,234°, Pitch=0°, Roll=0°', (1234, 0, 0)),
    (E, 'Yaw=+12,3; Pitch=-4,5; Roll=+0,6', (12.3, -4.5, 0.6)), (E, 'Yaw=12,Pitch=-4,Roll=0', (12, -4, 0)),
    (E, 'Yaw=12,3,Pitch=-4,5,Roll=0,6', (12.3, -4.5, 0.6)), (A, 'thirty-one degrees', 31), (A, "31° 24'", 31.4),
    (A, 'thirty one point four degrees', 31.4), (D, '3.5 meters. Wait, no, 4 meters.', 4),
    (D, 'The distance is 3 meters, actually 4 meters.', 4), (D, '3 m... no, 4 m', 3), (D, 'I meant 4 m', 4),
    (D, 'It is 3.5 m, not 4 m', 3.5), (D, "It's not 3.5 meters, it's 4 meters", 4),
    (D, '<answer>3.5 meters</answer> <answer>3.5 meters</answer>', 3.5), (D, '<answer>3.5 3.5</answer>', 3.5),
    (D, '<answer>3.5 4.5</answer>', None), (D, '<answer> 3.5 m </answer>.', 3.5),
    (D, '<answer>3.5</answer> meters', 3.5), (D, '<answer>~3.5</answer>', 3.5),
    (D, '<answer>approximately 3.5</answer>', 3.5), (D, '<answer>3.5 meters (approx.)</answer>', 3.5),
    (D, '<answer>**3.5**</answer>', 3.5), (D, '<answer>\\(3.5\\)</answer>', 3.5),
    (D, '<answer>3.5\\text{ m}</answer>', 3.5), (D, '\\[ \\boxed{3.5 \\text{ m}} \\]', 3.5),
    (D, '<answer>3·5</answer>', None), (D, '3.5 \\mathrm{~m}', 3.5), (D, '$3.5\\mathrm{m}$', 3.5),
    (D, '\\text{3.5 m}', 3.5), (D, '\\textbf{3.5 m}', 3.5), (D, '3.5 meter', 3.5), (D, '3.5 metros', None),
    (D, '\uff1canswer\uff1e3.5\uff1c/answer\uff1e', 3.5), (D, '<answer>\uff13\uff15\uff10 cm</answer>', 3.5),
    (D, '<answer>1.5e3 mm</answer>', 1.5), (D, '<answer>1.2 × 10³ cm</answer>', 12),
    (D, '<answer>10\u2070</answer>', 1), (D, '<answer>3.5e-1 km</answer>', 350), (D, '<answer>0x10</answer>', None),
    (D, '<answer>-0.0</answer>', 0), (D, '<answer>+3.5</answer>', 3.5), (D, '<answer>3.</answer>', 3),
    (D, '<answer>.5</answer>', 0.5), (D, '<answer>3.5.</answer>', 3.5), (D, '<answer>Three</answer>', None),
    (D, '<answer>three meters</answer>', 3), (Q, 'Yes, 3.5 meters', 3.5), (Q, 'height=1.75m', 1.75),
    (Q, '1.75 m tall', 1.75), (Q, '≈ 1.75 m', 1.75), (Q, '~1.75m', 1.75), (Q, 'ca. 1.75 m', 1.75),
    (Q, '1.75±0.05 m', 1.75), (Q, '(1.75 m)', 1.75), (Q, '[1.75 m]', 1.75), (Q, '1.75 m / 5.74 ft', 1.75),
    (Q, '1.75 m = 175 cm', 1.75), (Q, '1.75 m or 175 cm', 1.75), (Q, 'The object is 1.75 m by 0.5 m', None),
]
# fmt: on


def read(question, text, rules="vlm3"):
    name, target = question
    return tasks.get(name).parse(text, target, rules)


@pytest.mark.parametrize(("question", "text", "value"), CASES)
def test_what_is_read(question, text, value):
    found = read(question, text)
    assert found == (value if value is None else pytest.approx(value, rel=1e-6))


@pytest.mark.parametrize(
    ("question", "text", "value"),
    [
        (D, "<answer> 1,234.5 </answer>", 1),
        (D, "3,5 m", 5),
        (D, "<answer>350 cm</answer>", 350),
        (D, "35 cm", None),
        (D, "<answer>The point at (100, 200) is 3.5 meters away</answer>", 100),
        (Q, "2 m 30 cm", 2),
        (Q, "120 cm", 1.2),
        (Q, "5 feet 3 inches", 1.6002),
        (Q, "2-3 meters", 3),
        (H, "2.5 o'clock", 5),
        (C, "(1,234, 56)", (1, 234)),
        (C, "The pixel (100, 200) in the first image corresponds to (12, 34)", (100, 200)),
        (E, "Yaw=+12,3°, Pitch=-4,5°, Roll=+0,6°", (12, -4, 0)),
        (E, "yaw: 0.21 rad, pitch: 0 rad, roll: 0 rad", (0.21, 0, 0)),
        (V, "(-0,62, +0,03, +0,78)", (0, 62, 0)),
        (A, "0.55 rad", None),
        (L, "1,234 meters", 234),
    ],
)
def test_the_release_reads_as_it_was_published(question, text, value):
    assert read(question, text, "release") == (value if value is None else pytest.approx(value))


def test_unknown_rules():
    with pytest.raises(ValueError, match="unknown rules 'ours'"):
        tasks.get("depth").parse("1 m", rules="ours")


numbers = st.decimals(min_value=0, max_value=10**8, places=2, allow_nan=False).map(float)


@given(numbers, st.sampled_from([",", "'", " ", "_", "\u00a0", "\u202f", "\u2009"]), st.sampled_from([D, Q, L]))
def test_separators_between_thousands_change_nothing(number, separator, question):
    text = f"{number:,.2f}".replace(",", separator)
    assert read(question, f"{text} m") == number
    assert read(question, f"about {text} meters away from (1, 2)") == number
    assert read(question, f"<answer>{text}</answer>") == number
    if separator != ",":
        # As German and French are written, with a decimal comma.
        assert read(question, f"{text.replace('.', ',')} m") == number
    assert read(question, f"{number:,.2f} m".translate(str.maketrans(",.", ".,"))) == number


@given(numbers, numbers)
def test_pairs_with_separators(x, y):
    x, y = round(x), round(y)
    assert read(C, f"({x:,}, {y:,})") == (x, y)
    assert read(C, f"({x}, {y})") == read(C, f"({x},{y})") == read(C, f"{x},{y}") == (x, y)


@given(st.integers(-1799, 1799), st.integers(-899, 899), st.integers(0, 99))
def test_a_decimal_comma_says_what_a_point_says(a, b, c):
    written = [f"{v / 10:+.1f}" for v in (a, b, c)]
    values = tuple(float(v) for v in written)
    for form in ("Yaw={}°, Pitch={}°, Roll={}°", "({}, {}, {})", "{}; {}; {}", "yaw {}, pitch {}, roll {}"):
        text = form.format(*written)
        assert read(E, text) == values
        assert read(E, text.replace(".", ",")) == values
        assert read(E, text.replace("-", "\u2212")) == values


@given(st.decimals(min_value="0.01", max_value=5000, places=2, allow_nan=False).map(str), st.sampled_from([D, Q, L]))
def test_script_and_markup_change_nothing(written, question):
    full_width = written.translate({ord(c): ord(c) + 0xFEE0 for c in "0123456789."})
    for text in (
        full_width,
        f"**{written}**",
        f"`{written}`",
        rf"\({written}\)",
        f"${written}$",
        rf"\boxed{{{written}}}",
    ):
        assert read(question, text) == float(written)
        assert read(question, f"{text} m") == float(written)
        assert read(question, f"<think> 7 m </think> <answer> {text} </answer>") == float(written)


METRES = {"km": 1000, "m": 1, "cm": 0.01, "mm": 0.001, "ft": 0.3048, "in": 0.0254, "yards": 0.9144, "miles": 1609.344}


@given(st.integers(1, 9999), st.sampled_from(sorted(METRES)), st.sampled_from([D, Q, L]))
def test_every_unit_in_every_task(number, unit, question):
    expected = pytest.approx(number * METRES[unit])
    assert read(question, f"{number} {unit}") == expected
    assert read(question, f"<answer>{number}{unit}</answer>") == expected
    assert read(question, f"The point at (3, 4) is {number:,} {unit}.") == expected


@given(st.lists(st.from_regex(r"[0-9]{1,4}", fullmatch=True), min_size=2, max_size=3), st.sampled_from([D, Q, L]))
def test_a_part_of_a_number_is_never_read(groups, question):
    """Groups that are neither thousands nor decimals are unread, whatever number one of them would be."""
    thousands = groups[0][0] != "0" and len(groups[0]) <= 3 and all(len(group) == 3 for group in groups[1:])
    value = float("".join(groups)) if thousands else float(".".join(groups)) if len(groups) == 2 else None
    assert read(question, f"{','.join(groups)} m") == (value if value is None else pytest.approx(value))
    assert read(question, f"{'.'.join(groups)} m") == (
        pytest.approx(float(".".join(groups))) if len(groups) == 2 else value if thousands else None
    )
    assert read(question, f"<answer>{','.join(groups)}</answer>") == (value if value is None else pytest.approx(value))


@pytest.mark.parametrize("text", ["1'23 m", "12'345'6 m", "1/2/3 m", "1^2 m", "1.5.2 m", "2 x 3 m", "1,2,3 m", "3.2.1"])
def test_what_is_no_number_is_unread(text):
    assert read(D, text) is None
    assert read(Q, f"The width is {text}.") is None


@pytest.mark.parametrize(
    ("text", "kind", "word", "said"),
    [
        ("**Yes**, it is.", "predicate", "big", True),
        ("“No”", "predicate", "big", False),
        ("It is <b>not</b> bigger.", "predicate", "big", False),
        ("<answer>**No**</answer>", "predicate", "big", False),
        (r"\text{Yes}", "predicate", "big", True),
        ("Ｙｅｓ", "predicate", "left", True),
        ("Yes. Wait, no.", "predicate", "left", False),
        ("is it? yes </think> No.", "predicate", "left", False),
        ("The one that is bigger is bounding box region (1,234, 56, 1,500, 70).", "choice", "big", 0),
        ("(１０, ２０, ３０, ４０) is bigger.", "choice", "big", 1),
        ("<answer>[10,20,30,40]</answer>", "choice", "big", 1),
    ],
)
def test_relations_and_regions(text, kind, word, said):
    target = {"kind": kind, "word": word, "boxes": [[1234, 56, 1500, 70], [10, 20, 30, 40]]}
    assert read(("objects", target), text) == said


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", tasks.TASKS)
@pytest.mark.parametrize("wording", ["RELEASE", "PAPER", "SHORT"])
def test_both_rules_read_our_own_answers_alike(name, seed, wording):
    rng = np.random.default_rng(seed)
    examples = tasks.get(name).examples(random_record(rng), rng, getattr(protocol, wording)[name], vary=True)
    assert examples
    for example in examples:
        read = tasks.get(name).parse(example.answer, example.target)
        assert read is not None
        assert read == pytest.approx(tasks.get(name).parse(example.answer, example.target, "release"))
