"""The answers of Kie and of the other services, as data: paths and bodies, no logic.

A body is a template into which the server puts the task id, its own address and a progress. Those of Kie are
from tests/fixtures; the others have the fields that their SDKs require, and some more that real answers have.
Their URLs point to the server itself, or are never opened.
"""

from __future__ import annotations

import attrs

ID, BASE, PROGRESS = b"@ID@", b"@BASE@", b"@PROGRESS@"  # what the server replaces; per cent, of two digits
PROMPT = b"a lighthouse on a cliff at dusk, oil on canvas"
_URL = b"https://files.example.com/s/@ID@_0_1774788517_4321.png"
_WHEN = b"2026-01-02T03:04:05.678Z"


@attrs.frozen(kw_only=True)
class Format:
    """One service. The task id of a look is between `look` and `after` in its path; where a look is a
    POST, it follows `named` in the body."""

    submit: bytes
    look: bytes
    after: bytes = b""
    named: bytes = b""
    accepted: bytes
    running: bytes
    ended: bytes
    result: bytes = b""  # the answer at `look` + id without `after`, where that is another call


_KIE = (
    b'{"code":200,"msg":"success","data":{"taskId":"@ID@",'
    b'"paramJson":"{\\"enableFallback\\":false,\\"prompt\\":\\"' + PROMPT + b'\\",\\"size\\":\\"1:1\\"}",'
)
KIE = Format(
    submit=b"/api/v1/gpt4o-image/generate",
    look=b"/api/v1/gpt4o-image/record-info?taskId=",
    accepted=b'{"code":200,"msg":"success","data":{"taskId":"@ID@"}}',
    running=_KIE + b'"completeTime":null,"response":null,"successFlag":0,"status":"GENERATING",'
    b'"errorCode":null,"errorMessage":null,"createTime":1774788500000,"progress":"0.@PROGRESS@"}}',
    ended=_KIE + b'"completeTime":1774788518000,"response":{"resultUrls":["' + _URL + b'"]},'
    b'"successFlag":1,"status":"SUCCESS","errorCode":null,"errorMessage":null,'
    b'"createTime":1774788500000,"progress":"1.00"}}',
)

_FAL = (
    b'"request_id":"@ID@","response_url":"@BASE@/fal-ai/flux/requests/@ID@",'
    b'"status_url":"@BASE@/fal-ai/flux/requests/@ID@/status",'
    b'"cancel_url":"@BASE@/fal-ai/flux/requests/@ID@/cancel","logs":null,'
)
FAL = Format(
    submit=b"/fal-ai/flux",
    look=b"/fal-ai/flux/requests/",
    after=b"/status",
    accepted=b'{"status":"IN_QUEUE",' + _FAL + b'"metrics":{},"queue_position":0}',
    running=b'{"status":"IN_PROGRESS",' + _FAL + b'"metrics":{}}',
    ended=b'{"status":"COMPLETED",' + _FAL + b'"metrics":{"inference_time":1.5}}',
    result=b'{"images":[{"url":"' + _URL + b'","width":1024,"height":1024,"content_type":"image/png"}],'
    b'"timings":{"inference":1.5},"seed":42,"has_nsfw_concepts":[false],"prompt":"' + PROMPT + b'"}',
)


def _prediction(status: bytes, output: bytes) -> bytes:
    return (
        b'{"id":"@ID@","model":"black-forest-labs/flux-schnell","version":"hidden","status":"'
        + status
        + b'",'
        b'"input":{"prompt":"' + PROMPT + b'"},"output":' + output + b',"logs":"","error":null,'
        b'"metrics":null,"created_at":"' + _WHEN + b'","started_at":null,"completed_at":null,'
        b'"urls":{"get":"@BASE@/v1/predictions/@ID@","cancel":"@BASE@/v1/predictions/@ID@/cancel"}}'
    )


REPLICATE = Format(
    submit=b"/v1/predictions",
    look=b"/v1/predictions/",
    accepted=_prediction(b"starting", b"null"),
    running=_prediction(b"processing", b"null"),
    ended=_prediction(b"succeeded", b'["' + _URL + b'"]'),
)


def _video(status: bytes, progress: bytes, completed: bytes) -> bytes:
    return (
        b'{"id":"@ID@","object":"video","model":"sora-2","status":"'
        + status
        + b'","progress":'
        + progress
        + b","
        b'"created_at":1774788500,"completed_at":' + completed + b',"error":null,"expires_at":null,'
        b'"prompt":"' + PROMPT + b'","remixed_from_video_id":null,"seconds":"4","size":"720x1280"}'
    )


OPENAI = Format(
    submit=b"/v1/videos",
    look=b"/v1/videos/",
    accepted=_video(b"queued", b"0", b"null"),
    running=_video(b"in_progress", PROGRESS, b"null"),
    ended=_video(b"completed", b"100", b"1774788518"),
)

RUNWAYML = Format(
    submit=b"/v1/text_to_image",
    look=b"/v1/tasks/",
    accepted=b'{"id":"@ID@","estimatedCost":{"credits":5}}',
    running=b'{"id":"@ID@","status":"RUNNING","createdAt":"' + _WHEN + b'","progress":0.@PROGRESS@,'
    b'"estimatedCost":{"credits":5}}',
    ended=b'{"id":"@ID@","status":"SUCCEEDED","createdAt":"' + _WHEN + b'","output":["' + _URL + b'"],'
    b'"cost":{"credits":5}}',
)

_MODEL = b"publishers/google/models/veo-2.0-generate-001"
_OPERATION = b'{"name":"' + _MODEL + b'/operations/@ID@"'
GENAI = Format(
    submit=b"/v1beta1/" + _MODEL + b":predictLongRunning",
    look=b"/v1beta1/" + _MODEL + b":fetchPredictOperation",
    named=b"/operations/",
    accepted=_OPERATION + b"}",
    running=_OPERATION + b"}",
    ended=_OPERATION + b',"done":true,"response":{'
    b'"@type":"type.googleapis.com/cloud.ai.large_models.vision.GenerateVideoResponse",'
    b'"videos":[{"gcsUri":"' + _URL + b'","mimeType":"video/mp4"}]}}',
)

_RUNWARE = b'{"data":[{"taskType":"imageInference","taskUUID":"@ID@"'
RUNWARE = Format(
    submit=b"/runware/v1",
    look=b"/runware/v1",
    named=b"getResponse",  # submits and looks have the same path; this word marks a look
    accepted=_RUNWARE + b"}]}",
    running=_RUNWARE + b',"status":"processing"}]}',
    ended=_RUNWARE + b',"imageUUID":"@ID@","imageURL":"' + _URL + b'","status":"success","seed":42,'
    b'"cost":0.0006}]}',
)

TOO_MANY = b'{"code":429,"msg":"Your call frequency is too high. Please try again later.","data":null}'
UNKNOWN = b'{"code":404,"msg":"not found","data":null}'
