//! Attached and detached in random order, while commands, containers and daemons are killed: what is not killed works, and
//! nothing is left. `MESH_ATTACHES` and `MESH_SEED` change how many steps there are, and which (`scripts/soak attach`).

mod commands;
mod engines;
mod walk;

use mesh_tests::scenario;

#[test]
fn attached_and_detached_in_random_order() {
    scenario("attach", |lab| walk::through(&mut commands::Scene::new(lab)?, 100));
}

#[test]
fn engines_attach_and_detach_in_random_order() {
    scenario("attach by engines", |lab| walk::through(&mut engines::Scene::new(lab)?, 30));
}
