// Dragging with any pointer.

/** Call `move(dx, dy, isStart, event)` while the pointer drags, and `click(event)` after a press without a drag. */
export function drag(element, move, click) {
  element.addEventListener("pointerdown", (down) => {
    if (down.button !== 0) return;
    let isDragged = false;
    element.setPointerCapture(down.pointerId);
    if (!click) move(0, 0, true, down);
    const moved = (event) => {
      const [dx, dy] = [event.clientX - down.clientX, event.clientY - down.clientY];
      if (!isDragged && Math.abs(dx) + Math.abs(dy) < 4) return;
      move(dx, dy, !isDragged, event);
      isDragged = true;
    };
    const up = (event) => {
      element.removeEventListener("pointermove", moved);
      element.removeEventListener("pointerup", up);
      element.removeEventListener("pointercancel", up);
      if (!isDragged && event.type === "pointerup") click?.(event);
    };
    element.addEventListener("pointermove", moved);
    element.addEventListener("pointerup", up);
    element.addEventListener("pointercancel", up);
  });
}
