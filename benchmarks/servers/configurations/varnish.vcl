# Varnish as a cache in front of IMDS. The bench fills in what begins with a dollar sign.
vcl 4.1;

backend imds {
    .host = "127.0.0.1";
    .port = "$imds_port";
}

sub vcl_backend_fetch {
    # IMDS refuses what has been through a proxy.
    unset bereq.http.X-Forwarded-For;
    unset bereq.http.Via;
}

sub vcl_backend_response {
    if (beresp.status == 200) {
        set beresp.ttl = ${lifetime}s;
        set beresp.grace = ${lifetime}s;
    } else {
        # Nothing else is kept, nor noted as what is never kept: the next who asks stands in line again.
        set beresp.ttl = 0s;
        set beresp.grace = 0s;
    }
    return (deliver);
}
