//! HTTP requests.

use flotilla_proxy::config::Protocol::Http;

use crate::support::*;

#[tokio::test]
async fn requests_of_one_connection_share_one_connection_to_the_origin() {
    let origin = Origin::http("hello").await;
    let (_proxy, listen) = serving(Http, &[origin.address]).await;
    let mut client = connect(listen).await;
    for _ in 0..50 {
        assert_eq!(get(&mut client, "/").await, (200, "hello".to_owned()));
    }
    assert_eq!(origin.accepted(), 1);
}
