//! What is counted, as a scrape shows it.

use std::time::Duration;

use flotilla_proxy::{
    config::{
        CheckConfig, CheckKind, CompressionConfig, MirrorConfig,
        Protocol::{Http, Tcp},
        RouteConfig, TargetConfig,
    },
    metrics,
};
use metrics_exporter_prometheus::PrometheusBuilder;

use crate::{
    dual_stack::{black_hole, both, greeter, serving_name},
    support::*,
};

#[tokio::test]
async fn a_scrape_shows_what_went_through_with_help_for_every_name() {
    let exporter = PrometheusBuilder::new().install_recorder().expect("no other test installs one");
    metrics::describe();
    let (web, echo) = (Origin::http("hello").await, Origin::echo().await);
    let proxy = proxy();
    let (mut http, listen) = app(Http, &[web.address]);
    http.app = "counted".into();
    let (mut tcp, tcp_listen) = app(Tcp, &[echo.address]);
    tcp.app = "counted-tcp".into();
    serve(&proxy, &http).await;
    serve(&proxy, &tcp).await;
    let (mut routed, routed_listen) = app(Http, &[web.address]);
    routed.app = "counted-routes".into();
    let any = |name| RouteConfig::hosts(name, Vec::<String>::new(), "default");
    let mirror = Some(MirrorConfig { pool: "default".into(), percent: 100, body_bytes_max: 0 });
    routed.routes = vec![
        RouteConfig { expr: Some("request.headers['x-none'] == '1'".into()), ..any("rule") },
        RouteConfig { mirror, ..any("mirror") },
    ];
    serve(&proxy, &routed).await;
    let mut client = connect(routed_listen).await;
    for _ in 0..3 {
        assert_eq!(get(&mut client, "/").await.0, 200);
    }
    let page = "<p>the same again and again</p>\n".repeat(100);
    let pages = Origin::new({
        let page = page.clone();
        move |mut stream| {
            let page = page.clone();
            Box::pin(async move {
                while let Ok(head) = head(&mut stream).await {
                    let kind = if head.starts_with("GET /image") { "image/png" } else { "text/html" };
                    let length = page.len();
                    let head = format!("content-type: {kind}\r\ncontent-length: {length}\r\n\r\n");
                    send(&mut stream, format!("HTTP/1.1 200 OK\r\n{head}{page}")).await;
                }
            })
        }
    })
    .await;
    let (mut zipped, zipped_listen) = app(Http, &[pages.address]);
    zipped.app = "counted-gzip".into();
    zipped.compression = Some(CompressionConfig::default());
    serve(&proxy, &zipped).await;
    for (path, takes, coding) in [
        ("/", "gzip", Some("gzip")),
        ("/", "br, gzip;q=0.5", Some("gzip")),
        ("/", "identity", None),
        ("/image", "gzip", None),
    ] {
        let mut client = connect(zipped_listen).await;
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: a\r\naccept-encoding: {takes}\r\nconnection: close\r\n\r\n"
        );
        send(&mut client, request).await;
        assert_eq!(field(&head(&mut client).await.unwrap(), "content-encoding"), coding, "{path} {takes}");
        rest(&mut client).await.unwrap();
    }
    let mut client = connect(listen).await;
    for _ in 0..10 {
        assert_eq!(get(&mut client, "/").await.0, 200);
    }
    let mut session = connect(tcp_listen).await;
    send(&mut session, "12345").await;
    receive(&mut session, 5).await;
    let mut bad = connect(listen).await;
    send(&mut bad, "GET / HTTP/1.1\r\n\r\n").await;
    assert_eq!(status(&head(&mut bad).await.unwrap()), 400);

    // A socket file that is not there.
    let (mut file, file_listen) = app(Tcp, &[]);
    file.app = "counted-file".into();
    let gone = "unix:/nonexistent/app.sock";
    file.pools.get_mut("default").unwrap().targets = vec![TargetConfig::new(gone, 100)];
    serve(&proxy, &file).await;
    assert_reset_at(file_listen).await;

    // Of a name with both families one stops to answer.
    let (v4, v6) = both(1).await;
    let v4 = Origin::on(v4, greeter("four"));
    let (dual, dual_listen, _names) = serving_name(Tcp, v4.address, |app| {
        app.app = "counted-dual".into();
        let pool = app.pools.get_mut("default").unwrap();
        let interval = Duration::from_secs(3600);
        pool.check = CheckConfig { kind: CheckKind::Tcp, interval, ..CheckConfig::default() };
        pool.outlier.consecutive_failures = 1;
    })
    .await;
    let dual_status = || dual.status()[0].targets[0].clone();
    let all_pass = || dual_status().endpoints.iter().all(|endpoint| endpoint.available == Some(true));
    eventually("both pass", all_pass).await;
    let dual_target = dual_status().target;
    let _queued = black_hole(&v6, 1).await;
    assert_eq!(rest(&mut connect(dual_listen).await).await.unwrap(), b"four");

    let port = listen.port();
    for want in [
        format!(
            "flotilla_http_requests_total{{app=\"counted\",port=\"{port}\",code_class=\"2xx\",route=\"\"}} 10"
        ),
        format!(
            "flotilla_http_requests_total{{app=\"counted\",port=\"{port}\",code_class=\"4xx\",route=\"\"}} 1"
        ),
        "flotilla_http_response_bytes_total{app=\"counted\"} 50".to_owned(),
        "flotilla_upstream_pool_requests_total{app=\"counted\",result=\"hit\"} 9".to_owned(),
        "flotilla_upstream_pool_requests_total{app=\"counted\",result=\"new\"} 1".to_owned(),
        "flotilla_http_request_duration_seconds_count{app=\"counted\"} 11".to_owned(),
        format!("flotilla_connections_active{{app=\"counted-tcp\",port=\"{}\"}} 1", tcp_listen.port()),
        "flotilla_received_bytes_total{app=\"counted-tcp\",side=\"client\"} 5".to_owned(),
        "flotilla_sent_bytes_total{app=\"counted-tcp\",side=\"client\"} 5".to_owned(),
        format!("flotilla_target_load{{app=\"counted-tcp\",target=\"{}\"}} 1", echo.address),
        "flotilla_listener_generation{app=\"counted\"} 1".to_owned(),
        "flotilla_upstream_connects_total{app=\"counted-file\",result=\"failed\"} 1".to_owned(),
        "flotilla_connections_closed_total{app=\"counted-file\",reason=\"no_target\"} 1".to_owned(),
        format!("flotilla_target_load{{app=\"counted-file\",target=\"{gone}\"}} 0"),
        "flotilla_upstream_connects_total{app=\"counted-dual\",result=\"lost\"} 1".to_owned(),
        "flotilla_upstream_connects_total{app=\"counted-dual\",result=\"ok\"} 1".to_owned(),
        format!("flotilla_target_ejections_total{{app=\"counted-dual\",target=\"{dual_target}\"}} 1"),
        "flotilla_http_rule_failures_total{app=\"counted-routes\"} 3".to_owned(),
        "flotilla_http_mirrored_total{app=\"counted-routes\",result=\"ok\"} 3".to_owned(),
        "flotilla_http_compressed_total{app=\"counted-gzip\"} 2".to_owned(),
        // Before that, and of those alone.
        format!("flotilla_http_compressed_bytes_total{{app=\"counted-gzip\"}} {}", 2 * page.len()),
    ] {
        eventually(&want, || exporter.render().lines().any(|line| line == want)).await;
    }
    // An idle connection is parked, and again after its next request.
    let shows = async |line: &str| eventually(line, || exporter.render().lines().any(|is| is == line)).await;
    shows("flotilla_connections_parked{app=\"counted\"} 1").await;
    assert_eq!(get(&mut client, "/").await.0, 200);
    shows("flotilla_connections_parked{app=\"counted\"} 0").await;
    shows("flotilla_connections_parked{app=\"counted\"} 1").await;
    drop(client);
    shows("flotilla_connections_parked{app=\"counted\"} 0").await;
    drop(session);
    let gone = format!("flotilla_connections_active{{app=\"counted-tcp\",port=\"{}\"}} 0", tcp_listen.port());
    eventually(&gone, || exporter.render().lines().any(|line| line == gone)).await;

    let text = exporter.render();
    let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    for name in names.filter(|name| name.starts_with("flotilla_")) {
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
    }
}
