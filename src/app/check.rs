//! `anynode check`: whether a configuration and its services file can be used, without touching anything.

use std::path::Path;
use std::sync::Arc;

use super::config::Config;
use super::{EXIT_CONFIG, Flags, print};
use crate::link::{Token, TokenError};
use crate::model::{Scheme, ServiceSpec};
use crate::source::file;
use crate::tls::{Terminators, Trust};

/// Checks what `flags` name, prints every error, and returns the exit code.
pub fn check(flags: Flags) -> i32 {
    let config = match Config::load_or_say(flags) {
        Ok(config) => config,
        Err(code) => return code,
    };
    if !config.unknown_variables.is_empty() {
        config
            .unknown_variables
            .iter()
            .for_each(|unknown| eprintln!("error: {unknown}"));
        return EXIT_CONFIG;
    }
    let of_link = config.swarm.as_ref().filter(|swarm| swarm.link.is_some());
    let of_link = of_link.and_then(|swarm| token_error("link.token_file", &swarm.token_file));
    let of_admin = config.admin_settings.token_file.as_ref();
    let of_admin = of_admin.and_then(|path| token_error("admin.token_file", path));
    if let Some(error) = of_link.or(of_admin) {
        eprintln!("error: {error}");
        return EXIT_CONFIG;
    }
    let faults = tls_faults(&config);
    if !faults.is_empty() {
        faults.iter().for_each(|fault| eprintln!("error: {fault}"));
        return EXIT_CONFIG;
    }
    let Some(path) = &config.services else {
        print("ok: the configuration is valid, and names no services file\n");
        return 0;
    };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            eprintln!(
                "error: services = {:?}: expected a file that can be read: {error}",
                path.display().to_string()
            );
            return EXIT_CONFIG;
        }
    };
    match file::check(&text, config.vip_network, config.entry_points.clone()) {
        Ok(services) => {
            let faults = endpoint_faults(&config, &services);
            if !faults.is_empty() {
                faults
                    .iter()
                    .for_each(|fault| eprintln!("error: {}: {fault}", path.display()));
                return EXIT_CONFIG;
            }
            let n_services = services.len();
            print(&format!(
                "ok: the configuration is valid, and so are the {n_services} services of {}\n",
                path.display()
            ));
            0
        }
        Err(error) => {
            eprintln!("error: {}: {error}", path.display());
            EXIT_CONFIG
        }
    }
}

/// What is wrong with the files of certificates: `up` would go on, and take them up once they can be used.
fn tls_faults(config: &Config) -> Vec<String> {
    let of_authorities = Trust::new(config.authorities.clone()).faults();
    let of_entry_points = match config.tls.policies.is_empty() {
        true => Vec::new(),
        false => match Terminators::new(config.tls.clone()) {
            Ok(tls) => tls.config_faults(),
            Err(fault) => vec![fault],
        },
    };
    [of_authorities, of_entry_points].concat()
}

/// Services whose endpoints could not be judged as they ask: `up` would go on, and believe none of them.
fn endpoint_faults(config: &Config, services: &[Arc<ServiceSpec>]) -> Vec<String> {
    let trust = Trust::new(config.authorities.clone());
    let secured = services.iter().filter(|spec| spec.scheme == Scheme::Https);
    let fault = |spec: &Arc<ServiceSpec>| {
        let fault = trust.towards(&spec.endpoint_tls).err()?;
        Some(format!("service {}: {fault}", spec.name))
    };
    secured.filter_map(fault).collect()
}

/// What is wrong with a token, where it can be read: `up` would go on, letting nobody in or in danger.
fn token_error(key: &'static str, path: &Path) -> Option<String> {
    match Token::read(key, path) {
        Ok(token) => {
            let weakness = token.weakness()?;
            Some(format!("{key} = {}: {weakness}", path.display()))
        }
        Err(error @ TokenError::Short { .. }) => Some(super::chain(&error)),
        // A secret, which may be only where the node runs.
        Err(TokenError::File { .. }) => None,
    }
}
