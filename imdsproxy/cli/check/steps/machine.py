"""What else on this machine changes the way to IMDS: web proxies, a node's network, Azure's own agent."""

from __future__ import annotations

from urllib.parse import urlsplit

from imdsproxy.cli.check.facts import Facts
from imdsproxy.cli.check.finding import Finding, failure, ok, warning

_SCHEMES = ("http", "all")


def judge_web_proxy(facts: Facts) -> Finding:
    """Check whether a web proxy of this environment would catch clients' calls of IMDS. imdsproxy ignores it itself."""
    found = next(((scheme, url) for scheme, url in facts.web_proxies if scheme in _SCHEMES), None)
    if found is None:
        return ok("none in this environment")
    scheme, url = found
    shown = _shown(url)
    if _is_ours(facts, url):
        return ok(f"{scheme}_proxy is this proxy, {shown}")
    if facts.web_proxy_bypassed:
        return ok(f"{scheme}_proxy is {shown}, and its exceptions include 169.254.169.254")
    return warning(
        "web-proxy-catches",
        f"{scheme}_proxy is {shown}, and its exceptions (no_proxy) do not include 169.254.169.254",
        "add 169.254.169.254 and 127.0.0.1 to no_proxy, because IMDS answers only calls of the VM itself",
    )


def _shown(url: str) -> str:
    """Return a URL without its user name and password."""
    return url.rpartition("@")[2] if "@" in url else url


def _is_ours(facts: Facts, url: str) -> bool:
    parts = urlsplit(url if "//" in url else f"//{url}")
    try:
        return (parts.hostname, parts.port) in {
            (facts.config.host, facts.config.port),
            ("localhost", facts.config.port),
        }
    except ValueError:
        return False


def judge_node(facts: Facts) -> Finding:
    """Check whether a node's network goes around the rules of a redirect for pods."""
    node = facts.node
    if not node.kubelet:
        return ok("no kubelet runs here")
    kube_proxy = "with kube-proxy" if node.kube_proxy else "without kube-proxy"
    redirected = facts.ruleset is not None and facts.ruleset.own is not None and facts.ruleset.own.node
    if node.ebpf_label:
        found = f"a Kubernetes node {kube_proxy}, with eBPF host routing (AKS's label): pods' packets bypass all rules"
        advice = "use a node address (imdsproxy address), a Cilium policy, the socket or a sidecar instead"
        return failure("node-ebpf-routing", found, advice) if redirected else ok(found)
    if node.cilium and redirected:
        return warning(
            "node-cilium",
            f"a Kubernetes node {kube_proxy}, with Cilium: with its eBPF host routing, pods' packets bypass all rules",
            "check: kubectl get nodes -L kubernetes.azure.com/ebpf-host-routing; cilium status | grep 'Host Routing'",
        )
    return ok(f"a Kubernetes node {kube_proxy}{' and with Cilium' if node.cilium else ''}")


def judge_agent(facts: Facts) -> Finding:
    """Check for the Metadata Security Protocol's agent, which decides by the calling process."""
    if facts.agent is not None:
        return warning(
            "agent-runs",
            f"the Metadata Security Protocol's agent runs, and takes the proxy's clients for imdsproxy: {facts.agent}",
            "its access profile has to allow imdsproxy's user and program, and cannot tell the proxy's clients apart",
        )
    if facts.agent_installed:
        return ok("the Metadata Security Protocol's agent is installed and does not run")
    return ok("the Metadata Security Protocol's agent is not found")
