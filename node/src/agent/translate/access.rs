//! Who may ask. The services that are asked about requests become pools of the app.

use flotilla_proxy::config as proxy;
use flotilla_spec as spec;

use super::{Here, file, resolve, target, upstream_tls};

/// No name of a pool in a spec has a colon.
const FORWARD_POOL: &str = "access:forward";
const GRPC_POOL: &str = "access:ext_authz";

pub(super) fn access(access: &spec::Access, here: &Here) -> proxy::AccessConfig {
    let spec::Access { allow, deny, basic, jwt, forward, ext_authz, signer } = access;
    proxy::AccessConfig {
        allow: allow.clone(),
        deny: deny.clone(),
        basic: basic.as_ref().map(self::basic),
        jwt: jwt.as_ref().map(|jwt| self::jwt(jwt, here)),
        forward: forward.as_ref().map(|forward| proxy::ForwardAuthConfig {
            pool: FORWARD_POOL.to_owned(),
            path: forward.path.clone(),
            copy: forward.copy.iter().map(|name| name.to_ascii_lowercase()).collect(),
            timeout: forward.timeout,
        }),
        grpc: ext_authz
            .as_ref()
            .map(|asked| proxy::GrpcAuthConfig { pool: GRPC_POOL.to_owned(), timeout: asked.timeout }),
        signer: signer.clone(),
    }
}

/// They are checked with a connection, whatever the targets of the app are asked.
pub(super) fn pools(app: &spec::AppSpec, here: &Here) -> Vec<(String, proxy::PoolConfig)> {
    let pool = |targets: &[spec::Target], tls: Option<&spec::UpstreamTls>| proxy::PoolConfig {
        targets: targets.iter().map(target).collect(),
        resolve: resolve(&app.resolve),
        tls: tls.and_then(|tls| upstream_tls(tls, here)),
        ..proxy::PoolConfig::default()
    };
    let spec::Access { forward, ext_authz, .. } = &app.access;
    let forward =
        forward.as_ref().map(|asked| (FORWARD_POOL.to_owned(), pool(&asked.targets, asked.tls.as_ref())));
    let grpc = ext_authz.as_ref().map(|asked| {
        let pool = pool(&asked.targets, asked.tls.as_ref());
        let protocol = proxy::UpstreamProtocol::Http2;
        (GRPC_POOL.to_owned(), proxy::PoolConfig { protocol, ..pool })
    });
    forward.into_iter().chain(grpc).collect()
}

fn basic(basic: &spec::Basic) -> proxy::BasicConfig {
    let spec::Basic { realm, users, file, timeout } = basic;
    proxy::BasicConfig {
        realm: realm.clone(),
        users: users.clone(),
        file: file.as_ref().map(Into::into),
        timeout: *timeout,
    }
}

fn jwt(jwt: &spec::Jwt, here: &Here) -> proxy::JwtConfig {
    let algorithm = |algorithm: &spec::JwtAlgorithm| match algorithm {
        spec::JwtAlgorithm::Rs256 => proxy::JwtAlgorithm::Rs256,
        spec::JwtAlgorithm::Es256 => proxy::JwtAlgorithm::Es256,
        spec::JwtAlgorithm::EdDsa => proxy::JwtAlgorithm::EdDsa,
        spec::JwtAlgorithm::Hs256 => proxy::JwtAlgorithm::Hs256,
    };
    proxy::JwtConfig {
        jwks: jwt.jwks.clone(),
        ca: jwt.ca.as_ref().map(|ca| file(ca, here)),
        issuer: jwt.issuer.clone(),
        audience: jwt.audience.clone(),
        algorithms: jwt.algorithms.iter().map(algorithm).collect(),
        header: jwt.header.to_ascii_lowercase(),
        leeway: jwt.leeway,
        refresh: jwt.refresh,
        refresh_floor: jwt.refresh_floor,
        timeout: jwt.timeout,
    }
}
