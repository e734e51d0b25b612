"""The settings model. The field descriptions are also the text of `--help`, `imdsproxy config` and the sample files.

A field's name is that of its environment variable in lower case: IMDSPROXY_MAX_WAIT is max_wait, its flag --max-wait.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from imdsproxy.config import Config
from imdsproxy.protocol.address import Address
from imdsproxy.protocol.failures import DEFAULT_RETRIED
from imdsproxy.settings import places
from imdsproxy.settings.forms import (
    AccessMode,
    Bytes,
    Count,
    FewOrNone,
    Form,
    Host,
    HostNames,
    LogFormat,
    LogLevel,
    MetadataRule,
    OptionalAccessFile,
    OptionalBudgetFile,
    OptionalCount,
    OptionalFile,
    OptionalHandoverFile,
    OptionalHost,
    OptionalNode,
    OptionalPort,
    OptionalSocket,
    PathSeconds,
    Port,
    PositiveSeconds,
    Prefixes,
    Ranges,
    Seconds,
    Statuses,
    Switch,
    Targets,
    UnknownSettings,
    Upstream,
)

PREFIX = "IMDSPROXY_"


class Settings(BaseModel):
    """All settings, checked and frozen. The model reads no source itself; `load` does."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    host: Host = Field("127.0.0.1", description="Address or host name the proxy listens on.")
    port: Port = Field(8254, description="TCP port the proxy listens on; 0 picks a free one, which the log names.")
    uds: OptionalSocket = Field(
        None,
        description="Path of a Unix socket to listen on as well (mode 0660). Every process that may open it gets this "
        "VM's tokens, as at HOST and PORT.",
        examples=["/run/imdsproxy/imdsproxy.sock"],
    )
    admin_host: OptionalHost = Field(
        None,
        description="Address or host name of a second listener with only the pages under /-/, for a kubelet or "
        "Prometheus that cannot reach HOST. If it is unset, ADMIN_PORT is opened at HOST.",
        examples=["10.0.0.4"],
    )
    admin_port: OptionalPort = Field(
        None,
        description="TCP port of a second listener with only the pages under /-/; 0 picks a free one.",
        examples=[8256],
    )
    upstream: Upstream = Field(
        "http://169.254.169.254",
        description="Where requests go: http://host[:port], or unix:/path of another imdsproxy's socket.",
    )
    connect_timeout: PositiveSeconds = Field(2, description="Seconds to wait for a connection to the upstream.")
    read_timeout: PositiveSeconds = Field(
        30,
        description="Seconds to wait for the upstream's answer. Scheduled events may take 130 in any case.",
    )
    stale_after: Seconds = Field(
        2,
        description="Seconds without an answer after which a stale one within its bound is served; the request to "
        "the upstream continues.",
    )
    budget_requests: Count = Field(
        5, description="Most requests that reach IMDS in any window of BUDGET_WINDOW seconds."
    )
    budget_window: PositiveSeconds = Field(1, description="Length in seconds of the window of BUDGET_REQUESTS.")
    identity_budget_requests: OptionalCount = Field(
        None,
        description="Most requests for identity paths in any window of BUDGET_WINDOW seconds, from a budget of their "
        "own, and at most 5 at once (Azure documents 20). If it is unset, they share BUDGET_REQUESTS.",
        examples=[20],
    )
    budget_file: OptionalBudgetFile = Field(
        None,
        description="File through which all proxies on this VM keep one budget. It is created if it does not exist, "
        "and belongs on a tmpfs (/run). Linux only.",
        examples=["/run/imdsproxy/budget"],
    )
    header_timeout: PositiveSeconds = Field(
        10,
        description="Seconds a client has to send a whole request, counted from its first byte. Idle connections "
        "are closed after 75 seconds in any case.",
    )
    max_wait: Seconds = Field(
        10,
        description="Longest time in seconds that a request waits for a permit. A request that would wait longer is "
        "answered at once with 429 and Retry-After.",
    )
    retry_statuses: Statuses = Field(
        DEFAULT_RETRIED,
        description="Upstream statuses that are retried and count as failures of IMDS: they are not stored, and a "
        "stale answer within its bound is served instead. Each attempt takes a permit.",
    )
    retry_base: PositiveSeconds = Field(
        1, description="Seconds before the first retry; the pause doubles with each later one."
    )
    retry_max: Seconds = Field(70, description="Seconds after which a request is no longer retried.")
    ttl: PathSeconds = Field(
        (),
        description="Seconds that an answer is fresh, by path prefix, in place of the default policy's. The longest "
        "prefix decides; 0 turns caching off.",
        examples=['"/metadata/instance" = 120'],
    )
    stale_if_error: PathSeconds = Field(
        (),
        description="Seconds that an answer may be served after it was fresh while IMDS fails, by path prefix, in "
        "place of the default policy's.",
        examples=['"/metadata/instance" = 7200'],
    )
    token_fresh: PositiveSeconds = Field(
        3600,
        description="Longest time in seconds that an access token is served before a newer one is requested; half "
        "its remaining life if that is shorter.",
    )
    negative_ttl: Seconds = Field(5, description="Seconds a 400 or 404 of IMDS is remembered; 0 turns it off.")
    cache_max_bytes: Bytes = Field(
        16_777_216,
        description="Most bytes of everything that grows with the requests of clients: cached answers (13/16), "
        "known heads, and remembered targets, hosts and keys. The whole process stays "
        "below 80 MiB + 1.25 x this + 32 x MAX_BODY_BYTES + 32 KiB for each of at most 4096 connections.",
    )
    max_body_bytes: Bytes = Field(
        1_048_576, description="Most bytes of an upstream body; a larger one is refused with 502."
    )
    require_metadata_header: MetadataRule = Field(
        "credentials",
        description="Which requests must bring their own Metadata: true. With credentials, identity paths, every "
        "POST and every request addressed to 169.254.169.254 must; the proxy adds it to other requests. With "
        "never, it is added everywhere. A wrong value is always refused.",
    )
    allow: Prefixes = Field(("/metadata",), description="Path prefixes that are served, by whole segments.")
    deny: Prefixes = Field((), description="Path prefixes that are refused, even where ALLOW has them.")
    allowed_hosts: HostNames = Field(
        (),
        description="Host names accepted in the Host header beside localhost. An IP address is always accepted; on "
        "the Unix socket every name is.",
    )
    clients: Ranges = Field(
        (),
        description="Address ranges whose clients may ask at all, beside this machine's loopback and the Unix socket. "
        "Any other client gets 403, on every page but those of ADMIN_PORT. If it is empty, every client that reaches "
        "the proxy may ask.",
        examples=["10.244.3.0/24,10.0.0.4"],
    )
    access_file: OptionalAccessFile = Field(
        None,
        description="TOML or JSON file that says which users, programs and addresses may ask for what, or a profile "
        "of Azure's Metadata Security Protocol (docs/access.md). If it is unset, every client gets everything.",
        examples=["/etc/imdsproxy/access.toml"],
    )
    access_mode: AccessMode = Field(
        "enforce",
        description="What a refusal of ACCESS_FILE does: enforce answers 403; audit only logs and counts it. A file "
        "whose own mode is audit is never enforced.",
    )
    pods_of_node: OptionalNode = Field(
        None,
        description="Name of the Kubernetes node whose pods are watched at the API server, so that ACCESS_FILE can "
        "name namespaces and service accounts. Needs the extra kubernetes, and a service account that may list and "
        "watch pods. If it is unset, the API server is not asked.",
        examples=["aks-nodepool1-12345678-vmss000000"],
    )
    handover_file: OptionalHandoverFile = Field(
        None,
        description="File in which answers that describe the VM are kept over a restart: those of /metadata/instance "
        "and /metadata/loadbalancer, never a token. It is written at a clean end, and belongs on a tmpfs (/run). "
        "Linux only.",
        examples=["/run/imdsproxy/handover"],
    )
    derive: Switch = Field(
        default=False,
        description="Whether a leaf or subtree of /metadata/instance is answered from a cached parent.",
    )
    warmup: Targets = Field(
        (),
        description="Targets fetched at start, such as /metadata/instance?api-version=2021-02-01.",
    )
    log_level: LogLevel = Field("info", description="Messages of this severity and above are logged.")
    log_format: LogFormat = Field(
        "text", description="Form of the log on standard error: text, or one JSON object a line."
    )
    access_log: Switch = Field(default=False, description="Whether each request is logged.")
    metrics_by_client: FewOrNone = Field(
        0,
        description="Number of the most frequent clients that have metrics of their own, by user, address or "
        "namespace. All others are counted together. With 0 there is no metric by client.",
    )
    traces: Switch = Field(
        default=False,
        description="Whether each request and each upstream attempt is exported as an OpenTelemetry span, by OTLP over "
        "HTTP. OpenTelemetry's own variables, such as OTEL_EXPORTER_OTLP_ENDPOINT, say where to. Needs the extra otel.",
    )
    unknown_settings: UnknownSettings = Field(
        "refuse",
        description="Effect of an unknown IMDSPROXY_ name: refuse stops the start; warn logs a warning, for fleets "
        "that roll versions back. A misspelt name is always refused.",
    )
    config_file: OptionalFile = Field(
        None, description="TOML file with settings, named in lower case. Flags and environment take precedence."
    )

    @property
    def upstream_address(self) -> Address:
        """The upstream as an `Address`."""
        return places.parse_upstream(self.upstream)

    def config(self) -> Config:
        """Return the settings as plain values for the proxy."""
        values = {**dict(self), "upstream": self.upstream_address}
        del values["config_file"], values["unknown_settings"]
        return Config(**values)

    @field_validator("upstream")
    @classmethod
    def _another_than_itself(cls, upstream: str, info: ValidationInfo) -> str:
        path = places.parse_upstream(upstream).unix
        if path is not None and path == info.data.get("uds"):
            raise ValueError("the proxy itself listens there, so no request would reach IMDS")
        host, port = info.data.get("host"), info.data.get("port")
        # A host or port that failed its own check is missing here, and is reported for itself.
        if host is None or port is None:
            return upstream
        if places.parse_upstream(upstream).reaches(host, port):
            raise ValueError("the proxy itself listens there, so no request would reach IMDS")
        return upstream

    @field_validator("admin_port")
    @classmethod
    def _with_admin_host(cls, admin_port: int | None, info: ValidationInfo) -> int | None:
        if admin_port is None and info.data.get("admin_host") is not None:
            raise ValueError("IMDSPROXY_ADMIN_HOST is set, and needs a port")
        return admin_port


def environment_name(field: str) -> str:
    """Return the environment variable of a field: IMDSPROXY_PORT for port."""
    return PREFIX + field.upper()


def flag_name(field: str) -> str:
    """Return the flag of a field: --max-wait for max_wait."""
    return "--" + field.replace("_", "-")


def form(field: str) -> Form:
    """Return how the value of a field is written."""
    return next(item for item in Settings.model_fields[field].metadata if isinstance(item, Form))
