export async function startWorld() {}
