"""Bytes of records that were written before records had scenes, depth maps, masks and conversations."""

import base64

import msgpack
import numpy as np

from vlm3_jax import records

# Two views of 4 x 3 pixels with every label that there was, as `to_bytes` of version 0.1.0 wrote them.
OLD = base64.b85decode(
    "hoWg@qi<|vrFLm$cXN`3rD<(pXJv$?cWGpFXauHcWoc(<bOWSrVQpomb}%k*ZfB%qVRT`{O^HxWM-2)Z3IG5A4M|8uQUCw|1ONa40|){"
    "D0029dIgtPW02E0?K~#8NV`N}tVuk@09v&X-8~_XT0H&ywkEj3u002ovPDHLkV1lM&VQpn{VTPh+c*{T#00000005$9dCNc&00000005"
    "$6c*{Td00000005$6dCNcW00000005<TX=HS01g2<ZX=iA31FLs$a%^N@R9|CZZG)v`ba`-PqdaCfrE_RuaAlGN1f^nmbY*kIfB*mh00"
    "02+KL7v#000000000000000000000002+KL7v#00000000000002+KL7v#000000000000000KmY&$000000000000000000000002+K"
    "L7v#00008KmY&$0000000000000000000000000000000002+Kcr@CX>h`%V{&hBz=fr0ZDD6+gr#?BWOQf*rf6kpXJ~W-q;6qtWu|s9"
    "E^uyVq-0@qVZ=;{P)<h;3K|Lk000e1NJLTq000C40009B0ssI2JC-?-0000JNkl<ZcwS><WMYN`79JiR>>L0LWB{oFCCU&00000<MNUM"
    "nLSTZXV_|J&a$$y|W_Zg$5C8xG0001@W_im%5&!@I0001@V|dFy_y7O^0001@V|mLz@Bjb+0001`cWGpFXauHcWoc(<bOWn*Z*pv8UsP"
    "XXVQqt@WOR9OWurW1IHhxFVQ^)V1O%mGd30rS#DD+*00000@IL?m0000000000000000000000000@IL?m000000000000000@IL?m00"
    "000000000000006+i$0000000000000000000000000@IL?m000002tWV;00000000000000000000000000000000000@IRzxY-w=9q"
    "+@b#aKNQxWpH$8k%XymZ)t9Hb6;?HgQaA2d2nT;JZUtgb7*03Ws(5`rDAz>Wpl&`0RR910ssI2r(|VtbZB2~gQaA2d2nT;JZ3bdb7*03"
    "Wsw1;VtI6BbHoGy03bl5YiVv|p?aitX=Qf+r*C3vWn*-6k%XvXZ+K;MUvPMXrDSw@aAl)BX*8vCXkl<=k^uyzVtI6BbHoq;000000000"
    "3000020001`ZeeX@bCIQVXlZU|sBmv-Zgg{BZIOeeWOR9OWurW1G^KNBVQ^)V0t2ODd30rS#25eofIk2LfIk2LfIk2LfIk2LfIk2LfIp"
    ";mX=Qf+r)^<$V`yb_f~s(DX>N3LFkf(ZgQaA2d2nT;JZUtgb7*03Ws(5`rDAz>Wpl&`0RR910RR91s&H><Zgg`oUvPMXrDSw@aAl)BW;"
    "CU9Xkl<=k^usxVtI6BbHoS$03bjB0H8mtV{dk8b7^8}Y-x0P%Rk@%000000H$qabaH89!T"
)


def test_old_shards_are_readable():
    record = records.from_bytes(OLD)
    assert (record.id, record.covisibility, record.metric) == ("old", 0.5, False)
    assert (record.scene, record.depth_maps, record.masks, record.conversation) == ("", (), (), None)
    pixels = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    for number, view in enumerate(record.views):
        np.testing.assert_array_equal(view.image.load(), pixels + number)
        np.testing.assert_array_equal(view.world_T_cam[:3, 3], [1, 2, 3])
        assert (view.camera.fy, view.flip, view.crop) == (4.5, False, None)
    np.testing.assert_array_equal(record.depth[0].points_px, [[1, 2]])
    assert record.depth[0].depth_m.tolist() == [2.5]
    assert record.objects[0].names == ("thing",)
    np.testing.assert_array_equal(record.matches.points1_px, np.float32([[2.5, 1.25]]))
    again = records.from_bytes(records.to_bytes(record))
    assert records.to_bytes(again) == records.to_bytes(record)


def test_what_is_missing_has_its_default():
    tree = msgpack.unpackb(OLD)
    for field in ("depth", "objects", "matches", "covisibility", "metric"):
        del tree[field]
    record = records.from_bytes(msgpack.packb(tree))
    assert (record.depth, record.objects, record.matches, record.covisibility, record.metric) == (
        (),
        (),
        None,
        None,
        True,
    )
