"""Writing to fake-gcs-server, the emulator in STORAGE_EMULATOR_HOST: it has Google's JSON API for that, but not the XML
API that obstore writes through. Nobody is asked for credentials.
"""

import http.client
import json
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request

_SECONDS = 60


class Emulator:
    """The writes of a bucket, with obstore's arguments, results and exceptions."""

    def __init__(self, url: str, bucket: str, exceptions):
        self._url, self._bucket, self._exceptions = url, urllib.parse.quote(bucket), exceptions

    def put(self, key: str, body, mode=None) -> dict:
        """Bytes, or an open file, as an object; `mode`: "create", {"version": generation}, or None for any."""
        query = {"uploadType": "multipart"}
        if mode:
            query["ifGenerationMatch"] = "0" if mode == "create" else mode["version"]
        with tempfile.SpooledTemporaryFile(2**24) as whole:
            whole.write(b"--part\r\nContent-Type: application/json\r\n\r\n")
            whole.write(json.dumps({"name": key}).encode())
            whole.write(b"\r\n--part\r\nContent-Type: application/octet-stream\r\n\r\n")
            whole.write(body) if isinstance(body, bytes) else shutil.copyfileobj(body, whole)
            whole.write(b"\r\n--part--\r\n")
            size = whole.tell()
            whole.seek(0)
            headers = {"Content-Type": "multipart/related; boundary=part", "Content-Length": str(size)}
            place = f"upload/storage/v1/b/{self._bucket}/o?{urllib.parse.urlencode(query)}"
            answer = self._ask(place, whole, headers, mode)
        # Under these names obstore gives what it finds in the headers of an object.
        return {"e_tag": f'"{answer["etag"]}"', "version": answer["generation"]}

    def copy(self, key: str, target: str) -> None:
        """An object under another name."""
        names = (urllib.parse.quote(name, safe="") for name in (key, target))
        place = f"storage/v1/b/{self._bucket}/o/{{}}/rewriteTo/b/{self._bucket}/o/{{}}".format(*names)
        self._ask(place, b"{}", {"Content-Type": "application/json"}, None)

    def _ask(self, place: str, body, headers: dict, mode) -> dict:
        request = urllib.request.Request(f"{self._url}/{place}", body, headers, method="POST")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=_SECONDS) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            error.close()
            text = f"Server returned non-2xx status code: {error.code} {error.reason}"
            if error.code == 404:
                raise FileNotFoundError(text) from None
            if error.code in (401, 403):
                raise self._exceptions.PermissionDeniedError(text) from None
            if error.code == 412:
                kind = "AlreadyExistsError" if mode == "create" else "PreconditionError"
                raise getattr(self._exceptions, kind)(text) from None
            raise self._exceptions.GenericError(text) from None
        # Cut off, refused, no JSON.
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self._exceptions.GenericError(f"{type(error).__name__}: {error}") from None
