//! How a machine is shown. Nothing is told by colour alone: with `NO_COLOR`, which the library heeds, there is none.

use hmm_backend::text::printable;
use hmmvisor_api::VmState;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Sparkline};

use super::watch::{Cell, Rate, Watch};

/// Rows of the map of memory, at least.
const LEAST_MAP: u16 = 6;
/// Columns of an accelerator's line besides its bar, at most.
const BESIDE_USE: usize = 76;
/// Columns before a line of small bars.
const BEFORE_BARS: u16 = 28;

/// Draws everything; `line` is the last line.
pub(super) fn draw(frame: &mut Frame<'_>, watch: &Watch, line: String) {
    let devices = watch.devices.len().min(4) as u16;
    let rates = watch.rates.len() as u16;
    let rows = Layout::vertical([
        Constraint::Length(2),
        Constraint::Min(LEAST_MAP),
        Constraint::Length(1),
        Constraint::Length(rates),
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Length(devices),
        Constraint::Length(1),
    ]);
    let [
        head,
        map,
        legend,
        of_rates,
        of_vcpus,
        latencies,
        of_devices,
        last,
    ] = rows.areas(frame.area());
    frame.render_widget(heading(watch), head);
    draw_map(frame, watch, map);
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let text = " memory: . system memory, 1-9 tenths of it on accelerators, # all, x lost";
    frame.render_widget(Line::styled(text, bold), legend);
    for (rate, row) in watch.rates.iter().zip(of_rates.rows()) {
        draw_rate(frame, rate, row);
    }
    frame.render_widget(Line::raw(vcpus(watch, of_vcpus.width)), of_vcpus);
    let latency = |side, name: &str| latency(watch, side, name);
    let lines = vec![
        latency("CPU fault", "fault_latency_us"),
        latency("device fault", "device_fault_latency_us"),
    ];
    frame.render_widget(Paragraph::new(lines), latencies);
    for (device, row) in watch.devices.iter().zip(of_devices.rows()) {
        let width = usize::from(row.width)
            .saturating_sub(BESIDE_USE)
            .clamp(4, 40);
        let filled = width * device.used_pages as usize / device.capacity_pages.max(1) as usize;
        // A memory that shrinks may hold more than it can.
        let filled = filled.min(width);
        let rates = watch.accelerators.get(usize::from(device.device));
        let rates = match rates {
            Some(it) if device.attached => format!(
                "{:>6} faults/s in {}/s out {}/s",
                it.faults.now(),
                short(it.bytes_in.now()),
                short(it.bytes_out.now())
            ),
            _ => "detached".to_owned(),
        };
        let text = format!(
            " device{} [{}{}] {} of {} {rates}",
            device.device,
            "=".repeat(filled),
            " ".repeat(width - filled),
            bytes(u64::from(device.used_pages) * 4096),
            bytes(u64::from(device.capacity_pages) * 4096),
        );
        frame.render_widget(Line::raw(text), row);
    }
    let reversed = Style::new().add_modifier(Modifier::REVERSED);
    let line = format!(" {}", printable(&line));
    frame.render_widget(Paragraph::new(line).style(reversed), last);
}

fn heading(watch: &Watch) -> Paragraph<'_> {
    let vm = &watch.vm;
    let what = vm.workload.as_ref().or(vm.guest.as_ref());
    let what = what.or(vm.kernel.as_ref()).map_or("", String::as_str);
    let state = match vm.state {
        VmState::Running => "running",
        VmState::Paused => "PAUSED",
        VmState::Ended => "ended",
    };
    let recording = match watch.recording.active {
        true => ", recording",
        false => "",
    };
    let first = format!(
        " hmmvisor  {}  {state} for {:.1} s{recording}  {} vCPUs, {}, engine {}",
        printable(what),
        vm.uptime_s,
        vm.vcpus,
        bytes(vm.memory_bytes),
        vm.engine
    );
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let second = format!(" policy {}", printable(&vm.policy));
    Paragraph::new(vec![Line::styled(first, bold), Line::raw(second)])
}

fn draw_map(frame: &mut Frame<'_>, watch: &Watch, area: Rect) {
    let width = usize::from(area.width.saturating_sub(2)).max(1);
    let cells = watch.cells(width * usize::from(area.height));
    let rows = cells.chunks(width).map(|row| {
        let cell = |cell: &Cell| {
            let (letter, colour) = look_of(*cell);
            Span::styled(letter.to_string(), Style::new().fg(colour))
        };
        let margin = std::iter::once(Span::raw(" "));
        Line::from_iter(margin.chain(row.iter().map(cell)))
    });
    frame.render_widget(Paragraph::new(Vec::from_iter(rows)), area);
}

/// A letter and a colour for a piece of memory.
fn look_of(cell: Cell) -> (char, Color) {
    if cell.poisoned > 0 {
        return ('x', Color::Red);
    }
    if cell.used == 0 {
        return (' ', Color::Reset);
    }
    match 10 * cell.on_devices / cell.used {
        10 => ('#', Color::LightMagenta),
        0 if cell.on_devices == 0 => ('.', Color::Blue),
        tenths @ 0..=4 => (digit(tenths), Color::Cyan),
        tenths => (digit(tenths), Color::Magenta),
    }
}

fn digit(tenths: u32) -> char {
    char::from_digit(tenths.max(1), 10).unwrap_or('#')
}

fn draw_rate(frame: &mut Frame<'_>, rate: &Rate, row: Rect) {
    let now = match rate.is_bytes {
        true => format!("{}/s", bytes(rate.now())),
        false => format!("{}/s", rate.now()),
    };
    let [text, bars] =
        Layout::horizontal([Constraint::Length(BEFORE_BARS), Constraint::Min(0)]).areas(row);
    let line = format!(" {:<14}{now:>12}", rate.what);
    frame.render_widget(Line::raw(line), text);
    let width = usize::from(bars.width);
    let first = rate.seen.len().saturating_sub(width);
    let seen: Vec<u64> = rate.seen.iter().skip(first).copied().collect();
    let bar = Sparkline::default()
        .data(&seen)
        .style(Style::new().fg(Color::Green));
    frame.render_widget(bar, bars);
}

fn latency<'w>(watch: &Watch, side: &str, name: &str) -> Line<'w> {
    let value = |what: &str| watch.number(&format!("/{name}/{what}"));
    Line::raw(format!(
        " {side:<13} p50 {:>9.1} us   p99 {:>9.1} us   max {:>10.1} us",
        value("p50"),
        value("p99"),
        value("max")
    ))
}

/// Faults of each vCPU, as far as they have room.
fn vcpus(watch: &Watch, width: u16) -> String {
    let mut text = " vCPU faults/s".to_owned();
    for (vcpu, rate) in watch.vcpus.iter().enumerate() {
        let next = format!("  {vcpu}: {}", rate.now());
        if text.len() + next.len() + 2 > usize::from(width) {
            return text + " …";
        }
        text += &next;
    }
    text
}

/// A size with one letter for its unit.
fn short(size: u64) -> String {
    let text = bytes(size);
    let letters = text.replace([' ', 'i'], "");
    letters.strip_suffix('B').unwrap_or(&letters).to_owned()
}

/// A size, short.
fn bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_tell_where_memory_is() {
        let letter = |used, on_devices, poisoned| {
            look_of(Cell {
                used,
                on_devices,
                poisoned,
            })
            .0
        };
        assert_eq!(letter(0, 0, 0), ' ');
        assert_eq!(letter(100, 0, 0), '.');
        assert_eq!(letter(100, 1, 0), '1');
        assert_eq!(letter(100, 55, 0), '5');
        assert_eq!(letter(100, 99, 0), '9');
        assert_eq!(letter(100, 100, 0), '#');
        assert_eq!(letter(100, 50, 1), 'x');
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(bytes(5), "5 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(256 << 20), "256.0 MiB");
        assert_eq!(short(256 << 20), "256.0M");
        assert_eq!(short(5), "5");
    }
}
