"""moto's server, with defects of it corrected. `python -m tests.infra.aws_server -H HOST -p PORT` runs it.

- moto forgets the object sizes in a bucket's lifecycle rules, and Terraform waits until the rules are as it put them.
  So this server answers with the rules as they were put.
- A group whose launch template's second or later version has user data cannot start an instance: moto asserts a type
  that it gives to the first version's alone.
- The instances of a group have the type of its launch template, and none of its overrides.
- It does not know DeleteLaunchTemplateVersions, and takes a version's number for its place in a list.
- It does not know CompleteLifecycleAction. Its groups terminate instances at once, so there is nothing to complete.
"""

import argparse
import io
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

from moto.autoscaling.models import FakeAutoScalingGroup
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.responses import EmptyResult
from moto.ec2.models.launch_templates import LaunchTemplate, LaunchTemplateVersion
from moto.ec2.responses.launch_templates import LaunchTemplates
from moto.ec2.utils import parse_user_data
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def keep_lifecycle_rules(application: Application) -> Application:
    """Answer a question for lifecycle rules with the body of the last request that put them."""
    rules: dict[str, bytes] = {}

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        bucket, method = environ["PATH_INFO"].strip("/"), environ["REQUEST_METHOD"]
        if "lifecycle" not in parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True):
            return application(environ, start_response)
        if method == "PUT":
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(body)
            rules[bucket] = body
        elif method == "DELETE":
            rules.pop(bucket, None)
        elif bucket in rules:
            headers = [
                ("Content-Type", "application/xml"),
                ("x-amz-transition-default-minimum-object-size", "all_storage_classes_128K"),
            ]
            start_response("200 OK", headers)
            return [rules[bucket]]
        return application(environ, start_response)

    return answer


def correct_groups() -> None:
    """Have groups start instances as Amazon's do."""

    def type_of(group: Any) -> str:
        overrides = (group.mixed_instances_policy or {}).get("LaunchTemplate", {}).get("Overrides", [])
        return str(overrides[0]["InstanceType"]) if overrides else ""

    def delete_versions(response: Any) -> str:
        template = response.ec2_backend.get_launch_template_by_name(response.querystring["LaunchTemplateName"][0])
        template.versions.remove(version_of(template, response.querystring["LaunchTemplateVersion.1"][0]))
        return "<DeleteLaunchTemplateVersionsResponse/>"

    def version_of(template: Any, number: Any) -> LaunchTemplateVersion:
        named = {"$latest": template.latest_version(), "$default": template.default_version()}
        found: LaunchTemplateVersion | None = named.get(str(number).lower())
        return found or next(one for one in template.versions if one.number == int(number))

    def create_version(template: Any, data: dict[str, Any], description: str) -> LaunchTemplateVersion:
        number = template.versions[-1].number + 1 if template.versions else 1
        template.versions.append(LaunchTemplateVersion(template, number, data, description))
        found: LaunchTemplateVersion = template.versions[-1]
        return found

    corrections: list[tuple[type, str, object]] = [
        (LaunchTemplateVersion, "user_data", property(lambda version: parse_user_data(version.data.get("UserData")))),
        (FakeAutoScalingGroup, "instance_type", property(type_of)),
        (LaunchTemplate, "get_version", version_of),
        (LaunchTemplate, "create_version", create_version),
        (LaunchTemplates, "delete_launch_template_versions", delete_versions),
        (AutoScalingResponse, "complete_lifecycle_action", lambda response: EmptyResult()),
    ]
    for owner, name, value in corrections:
        setattr(owner, name, value)


def main() -> None:
    """Serve until the process is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-H", dest="host")
    parser.add_argument("-p", dest="port", type=int)
    options = parser.parse_args()
    correct_groups()
    application = keep_lifecycle_rules(DomainDispatcherApplication(create_backend_app))
    run_simple(options.host, options.port, application, threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    main()
